"""Checks of what is sampled and scored. The docstring of each is its claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agentrl.engines.contract import Generation, Media
from agentrl.episode import EMPTY_IDS, FloatArray, IntArray, Sampling, digest_ids
from agentrl.errors import UserError
from agentrl.testing.subject import Subject, refused, require

DRAWS = 64
"""Tokens drawn to compare their mean log-prob with the entropy: five standard errors are allowed."""


def close(first: FloatArray, second: FloatArray, atol: float) -> bool:
    """Same shape, every number finite, and near."""
    return (
        first.shape == second.shape and bool(np.isfinite(first).all()) and bool(np.allclose(first, second, rtol=0, atol=atol))
    )


def whole(prompt: IntArray, generation: Generation) -> IntArray:
    """Prompt and reply."""
    return np.concatenate([prompt, generation.ids]).astype(np.int32)


async def reply_has_shape(s: Subject) -> None:
    """A reply has int32 ids of the vocabulary, as many float32 log-probs (none above 0), and at most max_tokens of them."""
    for tokens in (1, 2, 17):
        reply = await s.generate(s.prompt(tokens), Sampling(max_tokens=tokens))
        require(reply.ids.dtype == np.int32 and reply.ids.ndim == 1, f"ids are {reply.ids.dtype} of shape {reply.ids.shape}")
        require(reply.logprobs.dtype == np.float32, f"log-probs are {reply.logprobs.dtype}")
        require(reply.logprobs.shape == reply.ids.shape, f"{reply.logprobs.shape} log-probs for {reply.ids.shape} ids")
        require(1 <= len(reply.ids) <= tokens, f"{len(reply.ids)} tokens for max_tokens={tokens}")
        require(reply.ids.min() >= 0 and reply.ids.max() < s.vocab_size, f"ids outside the vocabulary: {reply.ids}")
        require(not (reply.logprobs > 1e-6).any(), f"log-probs above 0: {reply.logprobs}")
        require(reply.finish in ("stop", "length"), f"finish is {reply.finish!r}")
        require(
            reply.finish == "stop" or len(reply.ids) == tokens, f"finish 'length' after {len(reply.ids)} of {tokens} tokens"
        )


async def digest_is_of_prompt_and_reply(s: Subject) -> None:
    """The digest is that of the prompt's ids followed by the reply's."""
    for forced in (EMPTY_IDS, s.prompt(5, 3)) if s.engine.info.offers.forced_prefix else (EMPTY_IDS,):
        prompt = s.prompt(2)
        reply = await s.generate(prompt, Sampling(max_tokens=7), forced=forced)
        require(reply.digest == digest_ids(prompt, reply.ids), "digest is not digest_ids(prompt, ids)")


async def spans_cover_the_reply(s: Subject) -> None:
    """Spans cover [0, len(ids)) exactly, in order, without gap or overlap, and name the version that serves."""
    reply = await s.generate(s.prompt(3), Sampling(max_tokens=9))
    require_cover(reply)
    require(reply.spans[-1].version == s.engine.version(s.policy), f"the span says {reply.spans[-1].version}")


def require_cover(reply: Generation) -> None:
    """Spans cover the reply."""
    at, told = 0, [(span.start, span.end) for span in reply.spans]
    for start, end in told:
        require(start == at and end > at, f"spans {told} over {len(reply.ids)} tokens")
        at = end
    require(at == len(reply.ids), f"spans end at {at}, the reply at {len(reply.ids)}")


async def logprobs_match_scores(s: Subject) -> None:
    """At temperature 1 the log-probs of a reply are those that `score` gives for the same tokens."""
    if not s.engine.info.offers.scoring:
        return
    for salt in range(3):
        prompt = s.prompt(salt)
        reply = await s.generate(prompt, Sampling(max_tokens=16), seed=salt)
        scores = await s.score(whole(prompt, reply), len(prompt))
        require(close(reply.logprobs, scores, s.atol), f"sampled with {reply.logprobs}, scored {scores}")


async def logprobs_are_of_the_tempered_softmax(s: Subject) -> None:
    """At another temperature T log-probs are of softmax(logits / T)."""
    prompt = s.prompt(11)
    row = await s.row(prompt)
    if row is None:
        return
    for temperature in (0.5, 2.0):
        tempered = row / temperature - np.logaddexp.reduce(row / temperature)
        reply = await s.generate(prompt, Sampling(temperature=temperature, max_tokens=1))
        expected = tempered[reply.ids[0]]
        require(abs(reply.logprobs[0] - expected) <= s.atol, f"T={temperature}: {reply.logprobs[0]}, expected {expected}")


async def logprobs_say_where_the_mask_is(s: Subject) -> None:
    """Under top-k and top-p only kept tokens are drawn, with log-probs before or after the mask as `logprobs_at` says."""
    prompt = s.prompt(12)
    row = await s.row(prompt)
    if row is None:
        return
    order = np.argsort(-row)
    nucleus = int((np.cumsum(np.exp(row[order])) - np.exp(row[order]) <= 0.3).sum())
    for sampling, kept in ((Sampling(top_k=3, max_tokens=1), 3), (Sampling(top_p=0.3, max_tokens=1), nucleus)):
        for seed in range(4):
            reply = await s.generate(prompt, sampling, seed=seed)
            token = int(reply.ids[0])
            # One token more than kept: ids at the mask's edge may swap by a rounding.
            require(token in order[: kept + 1], f"{sampling} drew the token of rank {int(np.flatnonzero(order == token)[0])}")
            expected = row[token]
            if reply.logprobs_at == "after_mask":
                expected -= np.logaddexp.reduce(row[order[:kept]])
            message = f"{sampling} gave log-prob {reply.logprobs[0]} {reply.logprobs_at}, expected {expected}"
            require(abs(reply.logprobs[0] - expected) <= s.atol, message)


async def greedy_takes_the_likeliest(s: Subject) -> None:
    """Temperature 0 takes the likeliest token whatever the seed, top_k=1 is the same, and log-probs are at temperature 1."""
    prompt = s.prompt(13)
    samplings = [Sampling(temperature=0, max_tokens=8), Sampling(top_k=1, max_tokens=8), Sampling(0.5, top_k=1, max_tokens=8)]
    replies = [await s.generate(prompt, sampling, seed=seed) for seed, sampling in enumerate(samplings)]
    for reply, sampling in zip(replies[1:], samplings[1:], strict=True):
        require(bool(np.array_equal(reply.ids, replies[0].ids)), f"{sampling} gave {reply.ids}, temperature 0 {replies[0].ids}")
    if s.engine.info.offers.scoring:
        scores = await s.score(whole(prompt, replies[0]), len(prompt))
        for reply, sampling in zip(replies, samplings, strict=True):
            require(
                close(reply.logprobs, scores, s.atol), f"{sampling} gave log-probs {reply.logprobs}, at temperature 1 {scores}"
            )
    row = await s.row(prompt)
    if row is not None:
        best = row.max()
        require(row[replies[0].ids[0]] >= best - s.atol, f"took {row[replies[0].ids[0]]}, the likeliest has {best}")


async def draws_follow_the_distribution(s: Subject) -> None:
    """The mean log-prob of tokens drawn with different seeds is minus the entropy, within five standard errors."""
    prompt = s.prompt(14)
    row = await s.row(prompt)
    if row is None:
        return
    calls = [s.generate(prompt, Sampling(max_tokens=1), seed=seed) for seed in range(DRAWS)]
    drawn = np.array([row[reply.ids[0]] for reply in await s.all_of(calls)])
    mean = float((np.exp(row) * row).sum())
    error = float(np.sqrt((np.exp(row) * (row - mean) ** 2).sum() / DRAWS))
    require(
        abs(drawn.mean() - mean) <= 5 * error + s.atol, f"mean log-prob {drawn.mean():.4f}, expected {mean:.4f} ± {error:.4f}"
    )
    require(len({*drawn.tolist()}) > 1 or error < 1e-3, f"{DRAWS} seeds drew one and the same token")


async def seeds_reproduce(s: Subject) -> None:
    """Where `deterministic` is offered, a seed gives the same tokens and the same log-probs to the bit; another seed others."""
    if not s.engine.info.offers.deterministic:
        return
    prompt, sampling = s.prompt(15), Sampling(max_tokens=24)
    first, again, other = [await s.generate(prompt, sampling, seed=seed) for seed in (3, 3, 4)]
    require(bool(np.array_equal(first.ids, again.ids)), f"seed 3 gave {first.ids}, then {again.ids}")
    require(first.logprobs.tobytes() == again.logprobs.tobytes(), "seed 3 gave the same tokens with other log-probs")
    if s.engine.info.offers.scoring:  # a script may not draw at all
        require(not np.array_equal(first.ids, other.ids), "seeds 3 and 4 gave the same 24 tokens")


async def batch_mates_do_not_matter(s: Subject) -> None:
    """Where `deterministic` is offered, a request gives the same bits alone and among others."""
    if not s.engine.info.offers.deterministic:
        return
    prompt, sampling = s.prompt(16), Sampling(max_tokens=16)
    alone = await s.generate(prompt, sampling, seed=5)
    mates = [s.generate(s.prompt(100 + n, 3 + n), Sampling(max_tokens=5 + 3 * n), seed=n) for n in range(7)]
    among = (await s.all_of([*mates[:3], s.generate(prompt, sampling, seed=5), *mates[3:]]))[3]
    require(bool(np.array_equal(alone.ids, among.ids)), f"alone {alone.ids}, among others {among.ids}")
    require(alone.logprobs.tobytes() == among.logprobs.tobytes(), "same tokens, but other log-probs among others")


async def forced_prefix_counts_as_sampled(s: Subject) -> None:
    """Forced tokens stand first in the reply, count for max_tokens and have log-probs (at T=1 those of `score`)."""
    prompt, forced = s.prompt(17), s.prompt(18, 4)
    if not s.engine.info.offers.forced_prefix:
        await refused(s.generate(prompt, Sampling(max_tokens=6), forced=forced), "a forced prefix, which is not offered,")
        return
    for tokens in (6, 4):
        reply = await s.generate(prompt, Sampling(max_tokens=tokens), forced=forced)
        require(bool(np.array_equal(reply.ids[:4], forced)), f"forced {forced}, got {reply.ids}")
        require(len(reply.ids) <= tokens, f"{len(reply.ids)} tokens with the 4 forced ones, for max_tokens={tokens}")
        require(reply.logprobs.shape == reply.ids.shape, f"{reply.logprobs.shape} log-probs for {reply.ids.shape} ids")
        require_cover(reply)
        if s.engine.info.offers.scoring:
            scores = await s.score(whole(prompt, reply), len(prompt))
            require(close(reply.logprobs, scores, s.atol), f"forced: log-probs {reply.logprobs}, scored {scores}")


async def forced_prefix_at_another_temperature(s: Subject) -> None:
    """At another temperature the log-probs of forced tokens are of softmax(logits / T), or nan."""
    prompt = s.prompt(19)
    row = await s.row(prompt) if s.engine.info.offers.forced_prefix else None
    if row is None:
        return
    forced = s.prompt(20, 1)
    reply = await s.generate(prompt, Sampling(temperature=0.5, max_tokens=2), forced=forced)
    expected = (row / 0.5 - np.logaddexp.reduce(row / 0.5))[forced[0]]
    given = float(reply.logprobs[0])
    require(np.isnan(given) or abs(given - expected) <= s.atol, f"T=0.5: forced log-prob {given}, expected {expected} or nan")
    require(len(reply.ids) < 2 or bool(np.isfinite(reply.logprobs[1])), "a drawn token has no log-prob")


async def cut_reply_goes_on_as_if_uncut(s: Subject) -> None:
    """Where `deterministic` is offered, a reply cut after k tokens and forced as a prefix goes on to the same tokens."""
    if not (s.engine.info.offers.deterministic and s.engine.info.offers.forced_prefix):
        return
    prompt, sampling = s.prompt(21), Sampling(max_tokens=20)
    uncut = await s.generate(prompt, sampling, seed=6)
    for k in (1, len(uncut.ids) // 2, len(uncut.ids) - 1):
        cut = await s.generate(prompt, replace(sampling, max_tokens=max(1, k)), seed=6)
        require(bool(np.array_equal(cut.ids, uncut.ids[: max(1, k)])), f"stopped after {k}: {cut.ids}, uncut {uncut.ids}")
        reply = await s.generate(prompt, sampling, seed=6, forced=cut.ids)
        require(bool(np.array_equal(reply.ids, uncut.ids)), f"cut after {k}: {reply.ids}, uncut {uncut.ids}")


async def stop_ids_end_the_reply(s: Subject) -> None:
    """A stop id ends the reply, is its last token and is told as `matched`."""
    prompt, sampling = s.prompt(22), Sampling(temperature=0, max_tokens=12)
    free = await s.generate(prompt, sampling)
    stop = int(free.ids[-1])
    length = int(np.flatnonzero(free.ids == stop)[0]) + 1
    reply = await s.generate(prompt, replace(sampling, stop_ids=(stop,)))
    require(bool(np.array_equal(reply.ids, free.ids[:length])), f"stop id {stop}: got {reply.ids}, without it {free.ids}")
    require(reply.finish == "stop" and reply.matched == stop, f"finish {reply.finish!r}, matched {reply.matched!r}")


async def scores_have_shape(s: Subject) -> None:
    """`score` gives one log-prob for each of ids[start:], the same for every start; without scoring it refuses."""
    ids = s.prompt(23, 12)
    if not s.engine.info.offers.scoring:
        await refused(s.score(ids), "scoring, which is not offered,")
        return
    whole_row = await s.score(ids)
    require(whole_row.shape == (11,), f"start 1 of 12 ids gives {whole_row.shape}")
    for start in (5, 11):
        part = await s.score(ids, start)
        require(
            close(part, whole_row[start - 1 :], s.atol), f"start {start} gives {part}, start 1 gave {whole_row[start - 1 :]}"
        )
    for start in (0, 13):
        await refused(s.score(ids, start), f"a score with start={start} of 12 ids", (UserError,))


async def media_are_refused_where_not_offered(s: Subject) -> None:
    """A prompt with media is refused where `media` is not offered."""
    if s.engine.info.offers.media:
        return
    request = s.request(s.prompt(25), Sampling(max_tokens=2))
    parts = (*request.parts, Media("00", "image"))
    await refused(s.engine.generate(replace(request, parts=parts)), "a prompt with media", (UserError,))


SAMPLING_CHECKS = (
    reply_has_shape, digest_is_of_prompt_and_reply, spans_cover_the_reply, logprobs_match_scores,
    logprobs_are_of_the_tempered_softmax, logprobs_say_where_the_mask_is, greedy_takes_the_likeliest,
    draws_follow_the_distribution, seeds_reproduce, batch_mates_do_not_matter, forced_prefix_counts_as_sampled,
    forced_prefix_at_another_temperature, cut_reply_goes_on_as_if_uncut, stop_ids_end_the_reply, scores_have_shape,
    media_are_refused_where_not_offered,
)  # fmt: skip
