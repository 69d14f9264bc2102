"""Checks of what an engine may offer beyond the rest: streams, columns, adapters, room for a learner. Docstrings are claims."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from agentrl.engines.contract import Colocated, Generation
from agentrl.episode import EMPTY_IDS, FloatArray, IntArray, Sampling, token_ids
from agentrl.testing.engine_sampling import close, require_cover, whole
from agentrl.testing.subject import TOO_FAST_S, Subject, refused, require

KEPT, MASK_LOGPROB = "kept", "mask_logprob"


class Pieces:
    """What `on_tokens` was told."""

    def __init__(self) -> None:
        self.told: list[tuple[IntArray, FloatArray]] = []

    def __call__(self, ids: IntArray, logprobs: FloatArray) -> None:
        require(len(ids) > 0 and len(ids) == len(logprobs), f"a piece of {len(ids)} ids and {len(logprobs)} log-probs")
        self.told.append((ids.copy(), logprobs.copy()))

    def require_joined(self, reply: Generation, what: str) -> None:
        """The pieces make up the reply."""
        ids = np.concatenate([EMPTY_IDS, *(ids for ids, _ in self.told)])
        require(bool(np.array_equal(ids, reply.ids)), f"{what}: the pieces are {ids}, the reply {reply.ids}")
        logprobs = np.concatenate([np.zeros(0, np.float32), *(logprobs for _, logprobs in self.told)])
        same = np.array_equal(logprobs, reply.logprobs, equal_nan=True)
        require(bool(same), f"{what}: log-probs in pieces are {logprobs}, in the reply {reply.logprobs}")


async def pieces_join_to_the_reply(s: Subject) -> None:
    """`on_tokens` gets the reply's ids and log-probs in order, forced ones too; without `streaming` in one piece at the end."""
    forced = token_ids(s.prompt(41, 3)) if s.engine.info.offers.forced_prefix else EMPTY_IDS
    for given in (EMPTY_IDS, forced):
        pieces = Pieces()
        reply = await s.generate(s.prompt(40), Sampling(max_tokens=16), forced=given, on_tokens=pieces)
        pieces.require_joined(reply, f"{len(given)} forced tokens")
        count = len(pieces.told)
        if s.engine.info.offers.streaming:
            require(count > 1 or len(reply.ids) < 16, f"{len(reply.ids)} tokens are streamed in one piece")
        else:
            require(count == 1, f"streaming is not offered, yet the reply came in {count} pieces")


async def aborted_stream_keeps_its_pieces(s: Subject) -> None:
    """What an aborted reply holds is what its pieces told."""
    sampling, seconds = await s.long()
    for part in (0.4, 0.2, 0.1, 0.02):
        pieces = Pieces()
        reply = await s.interrupted(replace(s.request(s.prompt(), sampling), on_tokens=pieces), seconds * part)
        pieces.require_joined(reply, f"{reply.finish!r} after {len(reply.ids)} tokens")
        if reply.finish == "abort":
            break


async def columns_are_given_or_refused(s: Subject) -> None:
    """Every column offered comes with one value a token, forced ones too; one not offered is refused."""
    offers = s.engine.info.offers
    for name in sorted(offers.columns):
        for forced in (EMPTY_IDS, s.prompt(42, 2)) if offers.forced_prefix else (EMPTY_IDS,):
            reply = await s.generate(s.prompt(24), Sampling(top_k=5, max_tokens=5), forced=forced, columns=(name,))
            require(name in reply.columns, f"the column {name!r} is offered but was not given")
            column = reply.columns[name]
            require(column.name == name and column.at == "sampled", f"the column {name!r} is called {column.name!r}")
            require(column.values.dtype.kind in "biuf", f"values of {name!r} have dtype {column.values.dtype}")
            require(
                len(column.values) == len(reply.ids), f"{len(column.values)} values of {name!r} for {len(reply.ids)} tokens"
            )
    await refused(s.generate(s.prompt(24), Sampling(max_tokens=5), columns=("no-such-column",)), "an unknown column")


async def masks_are_those_drawn_under(s: Subject) -> None:
    """Where offered, `kept` has the ids that the mask kept (-1 behind them), `mask_logprob` the token's log-prob among them."""
    if not {KEPT, MASK_LOGPROB} <= s.engine.info.offers.columns:
        return
    prompt = s.prompt(43)
    row = await s.row(prompt)
    for sampling in (Sampling(top_k=7, max_tokens=4), Sampling(top_k=7, top_p=0.05, max_tokens=4), Sampling(0, max_tokens=4)):
        reply = await s.generate(prompt, sampling, columns=(KEPT, MASK_LOGPROB))
        kept, inside = (reply.columns[name].values for name in (KEPT, MASK_LOGPROB))
        for token, mask in zip(reply.ids.tolist(), kept, strict=True):
            ids = mask[mask >= 0]
            require(token in ids, f"{sampling} drew {token}, which is not among the kept {ids}")
            require(len(set(ids.tolist())) == len(ids) <= 7, f"{sampling} kept {ids}")
        require(
            bool((reply.logprobs <= inside + s.atol).all()), f"log-probs {reply.logprobs} exceed those under the mask {inside}"
        )
        if row is None or reply.logprobs_at == "after_mask":
            continue
        ids = kept[0][kept[0] >= 0]
        expected = row[reply.ids[0]] - np.logaddexp.reduce(row[ids])
        require(abs(inside[0] - expected) <= s.atol, f"{sampling}: mask_logprob {inside[0]}, expected {expected}")
        likeliest = np.sort(row)[::-1][: len(ids)]
        require(bool(np.allclose(np.sort(row[ids])[::-1], likeliest, rtol=0, atol=s.atol)), f"{sampling} kept {ids}")


async def publish_of_an_adapter_leaves_the_others(s: Subject) -> None:
    """Where adapters are offered, publishing one changes its own policy's scores and version and no other's."""
    if not s.engine.info.offers.adapters or not s.others:
        return
    other, ids = s.others[0], s.prompt(44, 10)
    for policy, beside in ((s.policy, other), (other, s.policy)):
        before, version = await s.score(ids, policy=beside), s.engine.version(beside)
        own = await s.score(ids, policy=policy)
        weights, new = await s.next_version(policy)
        await s.engine.publish(policy, weights, new)
        require(s.engine.version(policy) == new, f"published {new}, serves {s.engine.version(policy)}")
        require(s.engine.version(beside) == version, f"{beside} serves {s.engine.version(beside)} after a publish to {policy}")
        require(
            close(await s.score(ids, policy=beside), before, s.atol), f"a publish to {policy} changed the scores of {beside}"
        )
        require(
            not close(await s.score(ids, policy=policy), own, s.atol), f"a publish to {policy} left its scores as they were"
        )
    both = await s.all_of([s.generate(s.prompt(45), Sampling(max_tokens=6), policy=policy) for policy in (s.policy, other)])
    told = [reply.spans[0].version for reply in both]
    require(told == [s.engine.version(s.policy), s.engine.version(other)], f"two policies at once gave {told}")


async def publish_of_an_adapter_spares_what_runs(s: Subject) -> None:
    """Where adapters are offered, a request that runs while its policy's adapter is replaced ends whole, with exact spans."""
    if not s.engine.info.offers.adapters:
        return
    in_flight, seconds = False, 0.0
    for part in (0.5, 0.3, 0.15, 0.05):
        sampling, seconds = await s.long()
        before = s.engine.version(s.policy)
        weights, version = await s.next_version()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(s.engine.generate(s.request(s.prompt(), sampling)))
            await asyncio.sleep(seconds * part)
            await s.engine.publish(s.policy, weights, version)
            in_flight = not task.done()
        reply, told = task.result(), [span.version for span in task.result().spans]
        require_cover(reply)
        require(reply.finish != "abort" and len(reply.ids) == sampling.max_tokens, f"it ended with {reply.finish!r}")
        require(not in_flight or told == [before], f"it began with {before}, its spans tell {told}")
        if in_flight:
            break
        await s.longer()
    require(in_flight or seconds < TOO_FAST_S, "no request outlasted a publish")
    after = await s.generate(s.prompt(46), Sampling(max_tokens=4))
    require([span.version for span in after.spans] == [version], f"spans {after.spans} after {version}")
    scores = await s.score(whole(s.prompt(46), after), len(s.prompt(46)))
    require(close(after.logprobs, scores, s.atol), "the new adapter's log-probs are not those that it scores")


async def publish_follows_released_memory(s: Subject) -> None:
    """Where offered, memory is released and taken back; nothing is sampled in between, and a publish makes the engine whole."""
    if not s.engine.info.offers.memory:
        return
    engine = s.engine
    require(isinstance(engine, Colocated), "offers.memory, but it has no release_memory and resume_memory")
    if not isinstance(engine, Colocated):
        return
    await engine.pause("retract")
    await engine.release_memory()
    await engine.resume_memory()
    weights, version = await s.next_version()
    await engine.publish(s.policy, weights, version)
    await engine.resume()
    reply = await s.generate(s.prompt(47), Sampling(max_tokens=6))
    require([span.version for span in reply.spans] == [version], f"published {version} after the release, spans {reply.spans}")
    if engine.info.offers.scoring:
        scores = await s.score(whole(s.prompt(47), reply), len(s.prompt(47)))
        require(close(reply.logprobs, scores, s.atol), "log-probs after the release are not those of the published weights")
    await engine.release_memory()
    await refused(s.generate(s.prompt(47), Sampling(max_tokens=2)), "a request while the memory is released")
    await engine.resume_memory()
    await engine.publish(s.policy, *await s.next_version())
    require(
        len((await s.generate(s.prompt(47), Sampling(max_tokens=2))).ids) > 0, "nothing is sampled after the second publish"
    )


OFFER_CHECKS = (
    pieces_join_to_the_reply, aborted_stream_keeps_its_pieces, columns_are_given_or_refused, masks_are_those_drawn_under,
    publish_of_an_adapter_leaves_the_others, publish_of_an_adapter_spares_what_runs, publish_follows_released_memory,
)  # fmt: skip
