"""The engine of a replay: it knows what the real one said of itself, and samples nothing."""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.engines.contract import (
    EngineInfo,
    GenerateRequest,
    Generation,
    Offers,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
)
from agentrl.episode import Version
from agentrl.errors import EngineError


@dataclass(frozen=True, slots=True)
class Recorded:
    """Answers nothing: in a replay every answer is in the journal. `max_context` is that of the recorded engine."""

    max_context: int
    vocab_size: int = 1 << 24

    @property
    def info(self) -> EngineInfo:
        offers = Offers(swap_in_flight=False, columns=frozenset({"entropy"}))
        return EngineInfo("recorded", self.vocab_size, self.max_context, offers)

    async def __aenter__(self) -> Recorded:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def generate(self, request: GenerateRequest) -> Generation:
        raise EngineError(f"a replay asks for request {request.id}, which the record does not hold")

    async def score(self, request: ScoreRequest) -> Scores:
        raise EngineError(f"a replay asks for scores {request.id}, which the record does not hold")

    async def abort(self, request_id: str) -> None: ...

    async def pause(self, mode: PauseMode = "in_place") -> None: ...

    async def resume(self) -> None: ...

    async def publish(self, policy: str, weights: Weights, version: Version) -> None: ...

    def version(self, policy: str) -> Version:
        return Version("recorded", policy, 0)
