"""What a rollout is judged by: its guardrails, their margins and the error rates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Literal

Kind = Literal["errors", "latency", "reward"]
Verdict = Literal["Healthy", "Degraded", "Undecided"]


@dataclass(frozen=True)
class Guard:
    """One guardrail: what is counted, and how much worse than the stable version is still allowed.

    Raises ValueError for a margin that no evidence could ever be held against.
    """

    name: str
    kind: Kind
    rho: float = 1.5
    """Share of bad responses allowed, as a multiple of the stable version's share."""
    delta: float = 0.005
    """Added to that: the candidate is allowed as long as its bad share is at most rho * stable's + delta."""
    drop: float = 0.03
    """Reward: how much lower the candidate's mean may be."""
    edge: float | None = None
    """Latency: a response slower than this many milliseconds is bad. None: chosen from the stable version."""
    blocks: int = 3
    """A regression is proven by no fewer bad blocks than this, however bad they are."""

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.rho, self.delta, self.drop))) or min(self.rho, self.delta) < 0:
            raise ValueError(f"guardrail {self.name}: margins are finite numbers, and rho and delta at least 0")
        if self.kind != "reward" and self.delta == 0:
            raise ValueError(
                f"guardrail {self.name}: delta must be more than 0, or two versions without any bad response could "
                f"never be told apart from a bad one; half of what the error budget allows is a good choice"
            )
        if self.kind == "reward" and not 0 <= self.drop < 1:
            raise ValueError(f"guardrail {self.name}: drop must lie in [0, 1), as rewards do in [0, 1]")
        if self.edge is not None and not (self.edge > 0 and isfinite(self.edge)):
            raise ValueError(f"guardrail {self.name}: edge is a finite number of milliseconds, more than 0")
        if self.blocks < 1:
            raise ValueError(f"guardrail {self.name}: blocks must be at least 1")

    @classmethod
    def errors(cls, name: str = "errors", *, rho: float = 1.5, delta: float = 0.005, blocks: int = 3) -> Guard:
        """Responses with a 5xx status, resets and time-outs are bad."""
        return cls(name, "errors", rho, delta, blocks=blocks)

    @classmethod
    def latency(
        cls,
        name: str = "latency",
        *,
        rho: float = 1.25,
        delta: float = 0.01,
        edge: float | None = None,
        blocks: int = 6,
    ) -> Guard:
        """Responses slower than `edge` milliseconds are bad. Fast failures look fast: never use it without errors."""
        return cls(name, "latency", rho, delta, edge=edge, blocks=blocks)

    @classmethod
    def reward(cls, name: str = "reward", *, drop: float = 0.03, blocks: int = 3) -> Guard:
        """The mean reward, in [0, 1], must not fall by more than `drop`."""
        return cls(name, "reward", 0.0, 0.0, drop=drop, blocks=blocks)

    def digest(self) -> str:
        """Short and stable: the same for two guards that judge alike."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class Settings:
    """All that decides how a candidate is judged. Raises ValueError for what cannot be judged by."""

    guards: tuple[Guard, ...]
    alpha: float = 0.01
    """Probability that a candidate which is allowed is rolled back, over all guardrails, candidates and looks."""
    beta: float = 0.05
    """Probability that a guardrail calls a candidate healthy which is worse than allowed."""
    canaries: int = 1
    """Candidates that are judged at the same time; they share alpha."""

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and 0 < self.beta < 1):
            raise ValueError("alpha and beta are probabilities: they must lie between 0 and 1")
        if self.canaries < 1:
            raise ValueError("canaries must be at least 1")
        names = [guard.name for guard in self.guards]
        if len(names) != len(set(names)):
            raise ValueError("two guardrails have the same name; give each its own")

    def digest(self) -> str:
        """Short and stable: the same for two settings that judge alike."""
        return _digest(asdict(self))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
