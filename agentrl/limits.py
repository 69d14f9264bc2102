"""Limits of an episode and of the runtime, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class Limits:
    """The outermost ring of the deadline tree (episode > agent > tool), and how much may go on at once."""

    concurrency: int = 256
    """Episodes that live at the same time."""
    deadline: float | None = 600.0
    """Seconds for a whole episode; its own agents and tools can only have less. None = no deadline."""
    grace: float = 5.0
    """Seconds that a cancelled episode's cleanup may take before it is left behind."""
    reward_timeout: float = 60.0
    """Seconds for an async reward function."""
    engine_retries: int = 2
    """How often a model call that failed for a reason that may pass is sent again."""
    retry_wait: float = 0.2
    """Seconds before the first retry; doubled for each further one."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise UserError(f"limits.concurrency must be >= 1, got {self.concurrency}")
        for name in ("deadline", "grace", "reward_timeout", "retry_wait"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"limits.{name} must be > 0 seconds, got {value}")
