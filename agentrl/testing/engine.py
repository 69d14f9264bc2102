"""The conformance suite of engines: `await check_engine(lambda: MyEngine(...))`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

import numpy as np

from agentrl.engines.contract import Engine, Weights
from agentrl.episode import Sampling
from agentrl.errors import AgentRLError, EngineError, boundary
from agentrl.testing.claims import Broken, ClaimBroken, Nonconforming, refuse_unknown, require
from agentrl.testing.engine_control import CONTROL_CHECKS
from agentrl.testing.engine_offers import OFFER_CHECKS
from agentrl.testing.engine_sampling import SAMPLING_CHECKS
from agentrl.testing.subject import Subject

CHECKS = {check.__name__: check for check in (*SAMPLING_CHECKS, *OFFER_CHECKS, *CONTROL_CHECKS)}


class EngineNonconforming(Nonconforming):
    """Every claim of the contract that the engine broke."""

    contract = "engine"


async def check_engine(
    make: Callable[[], AbstractAsyncContextManager[Engine]],
    policy: str = "policy",
    *,
    weights: Callable[[int], Weights] | None = None,
    others: Sequence[str] = (),
    only: Collection[str] = (),
    skip: Collection[str] = (),
    atol: float = 1e-4,
    patience_s: float = 60.0,
) -> tuple[str, ...]:
    """Holds one engine to the contract and gives the names of the checks that it passed.

    `make` gives what is entered as the engine; an engine that is not entered yet will do. One engine goes through all
    checks in turn, so it ends with other weights than it began with. `weights(n)` must give weights that differ from n
    to n; without it publishing is not checked, nor named in what is returned. Of an engine of adapters it gives their
    folders; `policy` is one adapter and `others` are further ones. Log-probs must agree within `atol`, each check end within
    `patience_s`. Raises `EngineNonconforming` with all broken claims.
    """
    refuse_unknown("engine", (*only, *skip), CHECKS)
    broken: list[Broken] = []
    held: list[str] = []
    async with make() as engine:
        subject = Subject(engine, policy, atol, weights, tuple(others))
        for name, check in CHECKS.items():
            if name in skip or (only and name not in only) or (weights is None and name.startswith("publish")):
                continue
            try:
                async with asyncio.timeout(patience_s):
                    with boundary(EngineError, "raised"):
                        await check(subject)
                held.append(name)
            except (AgentRLError, TimeoutError) as error:
                broken.append(Broken.by(check, error, patience_s))
                await _recover(engine, patience_s)
        if broken:
            raise EngineNonconforming(engine.info.name, broken, len(held))
    return tuple(held)


async def _recover(engine: Engine, patience_s: float) -> None:
    """A check that failed may have left the engine paused; the next one must not fail of that."""
    try:
        async with asyncio.timeout(patience_s):
            await engine.resume()
    except (AgentRLError, TimeoutError):
        return


async def check_same(
    first: Engine, second: Engine, policy: str = "policy", *, prompts: int = 8, tokens: int = 32, atol: float = 1e-4
) -> float:
    """Two entered engines with the same weights agree on log-probs: each scores what either of them sampled.

    Gives the largest difference; raises `EngineNonconforming` when it exceeds `atol`.
    """
    subjects = [Subject(engine, policy, atol, None) for engine in (first, second)]
    worst = 0.0
    try:
        require(first.info.vocab_size == second.info.vocab_size, "their vocabularies differ in size")
        for salt in range(prompts):
            for subject in subjects:
                prompt = subject.prompt(salt)
                ids = np.concatenate([prompt, (await subject.generate(prompt, Sampling(max_tokens=tokens), seed=salt)).ids])
                one, other = [await each.score(ids.astype(np.int32)) for each in subjects]
                worst = max(worst, float(np.abs(one - other).max()))
        require(worst <= atol, f"log-probs of the same tokens differ by up to {worst:.3g}, more than {atol:g}")
    except ClaimBroken as error:
        broken = Broken("check_same", "two engines with the same weights give the same log-probs", str(error))
        raise EngineNonconforming(f"{first.info.name} and {second.info.name}", [broken], 0) from error
    return worst
