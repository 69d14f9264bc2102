"""Checks of aborts, pauses, weights and refusals. The docstring of each is its claim."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from agentrl.engines.contract import Generation, PauseMode
from agentrl.episode import Sampling, digest_ids, token_ids
from agentrl.errors import ContextOverflow, UserError
from agentrl.testing.engine_sampling import close, require_cover, whole
from agentrl.testing.subject import TOO_FAST_S, Subject, refused, require

MANY = 64
ANSWER_S = 0.1
"""A reply that was whole before the pause may still be on its way for so long."""


async def abort_gives_what_was_sampled(s: Subject) -> None:
    """An aborted request returns what it had, with finish "abort"; it does not raise."""
    reply = await s.caught(s.engine.abort, _aborted, lambda reply: (reply.finish, len(reply.ids)))
    require(reply.logprobs.shape == reply.ids.shape, f"{reply.logprobs.shape} log-probs for {reply.ids.shape} ids")
    require_cover(reply)
    require(reply.digest == digest_ids(s.prompt(), reply.ids), "the digest of an aborted reply is not of prompt and reply")


def _aborted(reply: Generation) -> bool:
    return reply.finish == "abort"


async def abort_of_an_unknown_id_is_no_error(s: Subject) -> None:
    """Aborting an id that does not run does nothing."""
    await s.engine.abort("no-such-request")
    require(len((await s.generate(s.prompt(), Sampling(max_tokens=2))).ids) > 0, "the engine samples nothing afterwards")


async def cancelling_frees_the_place(s: Subject) -> None:
    """Cancelling the caller ends its request: the same id can be used again at once."""
    sampling, seconds = await s.long()
    request = s.request(s.prompt(), sampling)
    for part in (0.5, 0.0):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(s.engine.generate(request))
            await asyncio.sleep(seconds * part)
            task.cancel()
        require(task.cancelled() or task.done(), "a cancelled caller did not end")
        reply = await s.engine.generate(replace(request, sampling=Sampling(max_tokens=2)))
        require(len(reply.ids) > 0, "the same id gave nothing after its first request was cancelled")


async def pause_in_place_stops_and_goes_on(s: Subject) -> None:
    """Under "in_place" a running request stands still until `resume`, then goes on to its end."""
    await _stands_still(s, "in_place")


async def pause_retract_stops_and_goes_on(s: Subject) -> None:
    """Under "retract" a running request stands still until `resume`, then goes on to its end."""
    await _stands_still(s, "retract")


async def _stands_still(s: Subject, mode: PauseMode) -> None:
    still, seconds = False, 0.0
    for part in 2 * (0.4, 0.2, 0.1, 0.0):
        sampling, seconds = await s.long()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(s.engine.generate(s.request(s.prompt(), sampling)))
            await asyncio.sleep(seconds * part)
            await s.engine.pause(mode)
            ended, _ = await asyncio.wait([task], timeout=ANSWER_S)
            in_time = not ended
            done, _ = await asyncio.wait([task], timeout=1.5 * seconds + 0.05)
            await s.engine.resume()
        require(not (in_time and done), f"a request ended while the engine was paused ({mode})")
        require(task.result().finish != "abort", f"{mode} aborted a running request")
        require_cover(task.result())
        still = still or in_time
        if still:
            break
        await s.longer()
    require(still or seconds < TOO_FAST_S, "no request could be paused in mid-flight")


async def pause_abort_ends_what_runs(s: Subject) -> None:
    """Under "abort" running requests end with what they have; later ones wait for `resume`."""

    async def pause(request_id: str) -> None:
        del request_id
        await s.engine.pause("abort")
        await s.engine.resume()

    require_cover(await s.caught(pause, _aborted, lambda reply: (reply.finish, len(reply.ids))))


async def requests_wait_while_paused(s: Subject) -> None:
    """In all three modes a request that arrives while paused waits, and is answered after `resume`."""
    modes: tuple[PauseMode, ...] = ("in_place", "retract", "abort")
    for mode in modes:
        await s.engine.pause(mode)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(s.generate(s.prompt(), Sampling(max_tokens=3)))
            done, _ = await asyncio.wait([task], timeout=0.05)
            await s.engine.resume()
        require(not done, f"a request was answered while the engine was paused ({mode})")
        require(task.result().finish != "abort" and len(task.result().ids) > 0, f"{mode}: the request was lost")


async def abort_reaches_requests_that_wait(s: Subject) -> None:
    """A request that waits because the engine is paused can be aborted; it gives no tokens."""
    request = s.request(s.prompt(), Sampling(max_tokens=3))
    await s.engine.pause()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(s.engine.generate(request))
        await asyncio.wait([task], timeout=0.05)
        await s.engine.abort(request.id)
        done, _ = await asyncio.wait([task], timeout=5.0)
        await s.engine.resume()
    reply = task.result()
    require(bool(done) and reply.finish == "abort", f"aborted while it waited, it ended with {reply.finish!r}")
    require(len(reply.ids) == 0 and reply.digest == digest_ids(s.prompt()), "it never ran, yet it gave tokens")


async def publish_changes_version_and_weights(s: Subject) -> None:
    """After `publish` the new version serves: `version` and spans say so, and log-probs are of the new weights."""
    ids = s.prompt(31, 12)
    scoring = s.engine.info.offers.scoring
    seen = []
    published = [await s.next_version() for _ in range(2)]
    for weights, version in published:
        await s.engine.publish(s.policy, weights, version)
        require(s.engine.version(s.policy) == version, f"published {version}, serves {s.engine.version(s.policy)}")
        reply = await s.generate(s.prompt(31), Sampling(max_tokens=6))
        require([span.version for span in reply.spans] == [version], f"published {version}, spans {reply.spans}")
        if scoring:
            seen.append(await s.score(ids))
            scores = await s.score(whole(s.prompt(31), reply), 8)
            require(close(reply.logprobs, scores, s.atol), "log-probs of a reply are not those of the weights published last")
    if scoring:
        require(bool(np.abs(seen[0] - seen[1]).max() > s.atol), "other weights were published, and scores stayed the same")
        await s.engine.publish(s.policy, *published[-1])
        require(close(await s.score(ids), seen[1], s.atol), "the same weights published again give other scores")


async def publish_in_flight_gives_two_spans(s: Subject) -> None:
    """Weights published while a request runs serve it from the next token on, and its spans say from where."""
    if not s.engine.info.offers.swap_in_flight:
        return
    before = s.engine.version(s.policy)
    versions = [before]

    async def publish(request_id: str) -> None:
        del request_id
        weights, version = await s.next_version()
        versions.append(version)
        await s.engine.publish(s.policy, weights, version)

    reply = await s.caught(publish, lambda reply: len(reply.spans) == 2, lambda reply: reply.spans)
    require_cover(reply)
    require(reply.finish != "abort", "the publish aborted a running request")
    if len(reply.spans) == 2:
        require([span.version for span in reply.spans] == versions[-2:], f"spans {reply.spans}, versions {versions[-2:]}")
        await _old_tokens_keep_their_logprobs(s, reply)


async def _old_tokens_keep_their_logprobs(s: Subject, reply: Generation) -> None:
    """Tokens before the swap were not drawn from the new weights, so they cannot have the scores that those give."""
    if not s.engine.info.offers.scoring:
        return
    cut = reply.spans[0].end
    scores = await s.score(whole(s.prompt(), reply), len(s.prompt()))
    message = "tokens of the first span have the log-probs of the weights published after them"
    require(not close(reply.logprobs[:cut], scores[:cut], s.atol), message)


async def publish_while_paused(s: Subject) -> None:
    """`publish` works while paused, and the engine stays paused until `resume`."""
    modes: tuple[PauseMode, ...] = ("in_place", "retract", "abort")
    for mode in modes:
        weights, version = await s.next_version()
        await s.engine.pause(mode)
        async with asyncio.TaskGroup() as group:
            await s.engine.publish(s.policy, weights, version)
            task = group.create_task(s.generate(s.prompt(), Sampling(max_tokens=3)))
            done, _ = await asyncio.wait([task], timeout=0.05)
            await s.engine.resume()
        require(not done, f"publishing while paused ({mode}) resumed the engine")
        require([span.version for span in task.result().spans] == [version], f"spans {task.result().spans}, served {version}")


async def ids_outside_the_vocabulary_are_refused(s: Subject) -> None:
    """An id outside the vocabulary, in prompt, forced prefix or score, is refused as a UserError, and the engine lives on."""
    good, sampling = s.prompt(), Sampling(max_tokens=2)
    for bad_id in (s.vocab_size, -1):
        bad = token_ids([*good.tolist(), bad_id])
        await refused(s.generate(bad, sampling), f"id {bad_id} in a prompt", (UserError,))
        if s.engine.info.offers.forced_prefix:
            await refused(s.generate(good, Sampling(max_tokens=20), forced=bad), f"forced id {bad_id}", (UserError,))
        if s.engine.info.offers.scoring:
            await refused(s.score(bad), f"id {bad_id} in a score", (UserError,))
    require(len((await s.generate(good, sampling)).ids) > 0, "the engine samples nothing afterwards")


async def context_overflow_is_told(s: Subject) -> None:
    """A prompt that leaves no room for a token raises ContextOverflow; one that leaves some is cut at the context's end."""
    context = s.engine.info.max_context
    for length in (context, context + 10):
        await refused(
            s.generate(s.prompt(1, length), Sampling(max_tokens=1)), f"a prompt of {length} tokens", (ContextOverflow,)
        )
    reply = await s.generate(s.prompt(1, context - 4), Sampling(max_tokens=50))
    require(1 <= len(reply.ids) <= 4, f"{len(reply.ids)} tokens after a prompt of {context - 4} in a context of {context}")
    require(reply.finish == "length" or len(reply.ids) < 4, f"at the context's end it finished with {reply.finish!r}")


async def unknown_policies_are_refused(s: Subject) -> None:
    """A policy that is not served is refused as a UserError by every call."""
    await refused(s.generate(s.prompt(), Sampling(max_tokens=1), policy="no-such-policy"), "an unknown policy", (UserError,))
    weights, version = await s.next_version()
    await refused(s.engine.publish("no-such-policy", weights, version), "publishing to an unknown policy", (UserError,))
    if s.engine.info.offers.scoring:
        await refused(s.score(s.prompt(), policy="no-such-policy"), "scoring by an unknown policy", (UserError,))

    async def ask() -> None:
        s.engine.version("no-such-policy")

    await refused(ask(), "the version of an unknown policy", (UserError,))


async def live_ids_are_unique(s: Subject) -> None:
    """A second request with the id of one that runs is refused, and the first is not disturbed."""
    request = s.request(s.prompt(), Sampling(max_tokens=3))
    await s.engine.pause()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(s.engine.generate(request))
        await asyncio.wait([task], timeout=0.05)
        try:
            async with asyncio.timeout(2.0):
                await refused(s.engine.generate(request), "a live duplicate id")
        except TimeoutError:
            require(False, "a live duplicate id was not refused")
        finally:
            await s.engine.resume()
    require(task.result().finish != "abort", "the first request of two with one id was lost")


async def many_requests_are_all_answered(s: Subject) -> None:
    """Sixty-four requests at once, of different lengths, are all answered, each with its own digest."""
    prompts = [s.prompt(1000 + n, 3 + n % 7) for n in range(MANY)]
    calls = [s.generate(prompt, Sampling(max_tokens=1 + n % 13), seed=n) for n, prompt in enumerate(prompts)]
    for n, (prompt, reply) in enumerate(zip(prompts, await s.all_of(calls), strict=True)):
        require(1 <= len(reply.ids) <= 1 + n % 13, f"request {n} of {MANY} gave {len(reply.ids)} tokens for {1 + n % 13}")
        require(reply.digest == digest_ids(prompt, reply.ids), f"request {n} of {MANY} got another's reply")


CONTROL_CHECKS = (
    abort_gives_what_was_sampled, abort_of_an_unknown_id_is_no_error, cancelling_frees_the_place,
    pause_in_place_stops_and_goes_on, pause_retract_stops_and_goes_on, pause_abort_ends_what_runs,
    requests_wait_while_paused, abort_reaches_requests_that_wait, publish_changes_version_and_weights,
    publish_in_flight_gives_two_spans, publish_while_paused, ids_outside_the_vocabulary_are_refused,
    context_overflow_is_told, unknown_policies_are_refused, live_ids_are_unique, many_requests_are_all_answered,
)  # fmt: skip
