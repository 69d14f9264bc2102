"""Continuous batching of one policy: admit, prefill a piece, decode one token of every row, hand out what is finished.

A request joins at any step as soon as a row and memory are free, and leaves when it ends; a row's last known id is always
left for the sampling pass, so that drawing has one place. Long prompts are prefilled in pieces between decode steps.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from agentrl.engines.contract import Generation, ScoreRequest, Scores
from agentrl.engines.local.decoder import Decoder, Fused
from agentrl.engines.local.jobs import Job
from agentrl.engines.local.passes import prefill, sample
from agentrl.engines.local.prefixes import BLOCK, Kept, Prefixes, chain, shared
from agentrl.engines.local.rows import Rows
from agentrl.engines.local.stops import Decode, find_stop
from agentrl.episode import EMPTY_IDS, EMPTY_LOGPROBS, EMPTY_MAP, Column, Finish, Version, VersionSpan, digest_ids
from agentrl.errors import EngineAborted

WORTH_WAITING = 32
"""Tokens that a running sibling must be about to compute before a request waits for them."""


class Lane:
    """The rows, the queue and the prefixes of one policy. Runs in the engine's thread.

    `cache_tokens` bounds the cache: the number of rows times the length that the longest may reach.
    """

    def __init__(
        self, decoder: Decoder, version: Version, *, slots: int, decode: Decode | None, kept_tokens: int, cache_tokens: int
    ) -> None:
        self.decoder = decoder
        self.version = version
        self.rows = Rows(min(slots, decoder.shapes.widths[-1]))
        self.jobs: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.prefixes = Prefixes(kept_tokens)
        self._cache_tokens = cache_tokens
        self._decode = decode

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.jobs or self.waiting)

    def step(self) -> None:
        """One prefill piece, and one token for every row that is ready."""
        rows = self.rows
        if self.waiting and rows.count < rows.slots:
            self._admit()
        pending = rows.length[: rows.count] - rows.done[: rows.count]
        if (pending > 1).any():
            served = prefill(self.decoder, rows, np.flatnonzero(pending > 1))
            for row in sorted(served, reverse=True):
                if rows.length[row] - rows.done[row] == 1:
                    self._be_ready(row)
            pending = rows.length[: rows.count] - rows.done[: rows.count]
        ready = np.flatnonzero(pending == 1)
        if len(ready):
            ended = sample(self.decoder, rows, ready)
            if self._decode is not None:
                ended += [row for row in ready.tolist() if self.jobs[row].stops]
            for row in sorted(set(ended), reverse=True):
                self._check_end(row)

    # joining

    def _admit(self) -> None:
        """Gives rows to waiting requests, in order, for about one prefill pass's worth of tokens.

        One that shares a long prefix with a row still being prefilled is passed over until that row is done.
        """
        rows, budget = self.rows, self.decoder.shapes.widths[-1]
        longest = int(rows.limit[: rows.count].max(initial=0))
        passed: list[Job] = []
        while self.waiting and rows.count < rows.slots and budget > 0:
            job = self.waiting.popleft()
            longest = max(longest, job.limit)
            found = self._find(job)
            full = rows.count and (rows.count + 1) * longest > self._cache_tokens
            if full or found is None:
                passed.append(job)
                if full:
                    break
                continue
            budget -= len(job.ids) - self._place(job, *found)
        self.waiting.extendleft(reversed(passed))

    def _find(self, job: Job) -> tuple[Kept | int | None, int] | None:
        """(a kept context or a row to copy from, tokens to copy), or None: wait for a sibling."""
        if not job.hashes:
            job.hashes = chain(job.ids[:-1])
        most = min(job.start, len(job.ids)) - 1
        source = self.prefixes.find(job.hashes)
        if source is None:
            return None, 0
        if isinstance(source, Kept):
            return source, min(shared(source.ids, job.ids), most)
        row = next(index for index, each in enumerate(self.jobs) if each.key == source)
        common = min(shared(self.jobs[row].ids, job.ids), len(self.jobs[row].ids) - 1, most)
        done = min(common, int(self.rows.done[row]))
        return None if common - done >= WORTH_WAITING else (row, done)

    def _place(self, job: Job, source: Kept | int | None, common: int) -> int:
        """Puts a request into the next row; gives the number of tokens that need no prefill."""
        rows, row, size, shapes = self.rows, self.rows.count, len(job.ids), self.decoder.shapes
        rows.room(job.limit + 1, len(job.stop_ids))
        if shapes.width(row + 1) > self.decoder.rows:
            self.decoder.reserve(shapes.width(min(rows.slots, 2 * row + 8)), shapes.keys(size))
        self.decoder.reserve(row + 1, shapes.keys(size))
        common = common if common >= BLOCK else 0
        if common and isinstance(source, Kept):
            self.decoder.copy_in(row, source.kv, common)
            job.source = source
        elif common and isinstance(source, int):
            self.decoder.copy_row(source, row, common)
        rows.length[row], rows.done[row], rows.start[row], rows.limit[row] = size, common, job.start, job.limit
        rows.wanted[row] = job.start
        rows.ids[row, :size] = job.ids
        rows.greedy[row], rows.temperature[row] = job.greedy, job.temperature
        rows.top_k[row], rows.top_p[row], rows.seed[row] = job.top_k, job.top_p, job.seed
        rows.entropy[row] = job.entropy
        rows.stop_ids[row] = -1
        rows.stop_ids[row, : len(job.stop_ids)] = job.stop_ids
        rows.count += 1
        self.jobs.append(job)
        job.cached, job.admitted = common, time.monotonic()
        self.prefixes.add_running(job.key, job.hashes)
        if size - common == 1:
            job.ready = job.admitted
        return common

    # ending

    def _be_ready(self, row: int) -> None:
        """All but the newest id of a row are computed: a score is complete, a reply that was forced to its end too."""
        job = self.jobs[row]
        job.ready = job.ready or time.monotonic()
        if isinstance(job.request, ScoreRequest):
            start, size = int(self.rows.start[row]), int(self.rows.length[row])
            job.reply(Scores(self.rows.logprobs[row, start:size].copy(), self.version))
            self._leave(row)
        elif len(job.ids) > job.start:
            self._check_end(row)

    def _check_end(self, row: int) -> None:
        """Ends a request whose newest token is a stop id, completes a stop string, or is the last allowed."""
        rows, stops = self.rows, self.jobs[row].stops
        start, size = int(rows.start[row]), int(rows.length[row])
        newest = int(rows.ids[row, size - 1])
        text = find_stop(self._decode, stops, rows.ids[row, start:size]) if stops and self._decode is not None else None
        if newest in self.jobs[row].stop_ids:
            self._finish(row, "stop", newest)
        elif text is not None:
            self._finish(row, "stop", text)
        elif size >= rows.limit[row]:
            self._finish(row, "length", None)

    def _finish(self, row: int, finish: Finish, matched: int | str | None) -> None:
        rows, job = self.rows, self.jobs[row]
        start = int(rows.start[row])
        end = min(int(rows.wanted[row]), int(rows.length[row]))  # an abort may find forced ids without log-probs
        ids = rows.ids[row, start:end].copy()
        self._close_span(job, end - start)
        now = time.monotonic()
        ready = job.ready or now
        job.reply(
            Generation(
                ids=ids,
                logprobs=rows.logprobs[row, start:end].copy(),
                spans=tuple(job.spans),
                finish=finish,
                digest=digest_ids(rows.ids[row, :start], ids),
                matched=matched,
                cached_tokens=job.cached,
                columns={"entropy": Column("entropy", rows.entropies[row, start:end].copy())} if job.entropy else EMPTY_MAP,
                times={"queued": job.admitted - job.submitted, "prefill": ready - job.admitted, "decode": now - ready},
            )
        )
        self._leave(row)

    def _leave(self, row: int) -> None:
        """Frees a row: its context is kept for others, its place goes to the last row."""
        rows, job, last = self.rows, self.jobs[row], self.rows.count - 1
        self.prefixes.drop_running(job.key, job.hashes)
        done = int(rows.done[row])
        if not job.mixed and BLOCK <= done <= self.prefixes.limit:
            kept = Kept(rows.ids[row, :done].copy(), self.decoder.copy_out(row, done))
            self.prefixes.keep(kept, job.source)
        if row != last:
            self.decoder.copy_row(last, row, int(rows.done[last]))
            rows.move(last, row)
            self.jobs[row] = self.jobs[last]
        self.jobs.pop()
        rows.count -= 1

    def abort(self, key: int) -> bool:
        """Ends a waiting or running request with what it has; a score has nothing and raises. False: not here."""
        for row, job in enumerate(self.jobs):
            if job.key == key:
                if isinstance(job.request, ScoreRequest):
                    job.reply(EngineAborted(f"score {job.request.id!r} was aborted", retryable=True))
                    self._leave(row)
                else:
                    self._finish(row, "abort", None)
                return True
        for job in self.waiting:
            if job.key == key:
                self.waiting.remove(job)
                self._abort_waiting(job)
                return True
        return False

    def abort_all(self) -> None:
        """Ends every request, waiting ones too."""
        for job in [*self.waiting, *self.jobs[::-1]]:
            self.abort(job.key)

    def _abort_waiting(self, job: Job) -> None:
        if isinstance(job.request, ScoreRequest):
            job.reply(EngineAborted(f"score {job.request.id!r} was aborted", retryable=True))
            return
        digest = digest_ids(job.ids[: job.start])
        columns = {"entropy": Column("entropy", EMPTY_LOGPROBS)} if job.entropy else EMPTY_MAP
        times = {"queued": time.monotonic() - job.submitted}
        job.reply(Generation(EMPTY_IDS, EMPTY_LOGPROBS, (), "abort", digest, columns=columns, times=times))

    # new weights

    def publish(self, weights: Fused, version: Version) -> None:
        """New weights from the next token on. Rows that have drawn keep their cache; others begin again under the new."""
        rows = self.rows
        self.prefixes.clear()
        for row, job in enumerate(self.jobs):
            size, start = int(rows.length[row]), int(rows.start[row])
            drawn = size > len(job.ids)
            keeps = drawn and size - int(rows.done[row]) == 1
            job.source, job.mixed = None, keeps
            if drawn:
                self._close_span(job, size - start)
                job.span_kv = "kept" if keeps else "recomputed"
            if not keeps:
                rows.done[row], job.cached = 0, 0
                rows.wanted[row] = size if drawn else start
                self.prefixes.add_running(job.key, job.hashes)
        self.decoder.weights, self.version = weights, version

    def retract(self) -> None:
        """Every row loses its cache and computes it anew, with the weights that then serve."""
        for row, job in enumerate(self.jobs):
            self.rows.done[row] = 0
            if job.mixed:
                self._close_span(job, int(self.rows.length[row] - self.rows.start[row]))
                job.span_kv, job.mixed = "recomputed", False

    def _close_span(self, job: Job, end: int) -> None:
        if end > job.span_start:
            job.spans.append(VersionSpan(self.version, job.span_start, end, job.span_kv))
            job.span_start = end
