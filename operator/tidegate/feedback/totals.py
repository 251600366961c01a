"""The counters: number, sum and sum of squares of each version's rewards, and the ids that were seen lately.

A state machine without clock or disk. `judge` says what would become of items and changes nothing, `apply` does it.
What `apply` gets is what the disk gets, so that reading it back gives the same counters to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tidegate.feedback.items import Item, Refusal, Where
from tidegate.feedback.limits import Limits

Outcome = Literal["credited", "duplicate"] | Refusal


@dataclass(slots=True)
class Counter:
    """The rewards of one version."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    last: int = 0
    """When the latest came, in whole seconds since the epoch."""

    def add(self, reward: float, now: int) -> None:
        """One more reward."""
        self.count += 1
        self.total += reward
        self.squares += reward * reward
        self.last = now


@dataclass(slots=True)
class Deployment:
    """What is known of one ModelDeployment."""

    versions: dict[str, Counter] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    """Keys of the ids that are remembered."""
    order: deque[int] = field(default_factory=deque)
    """The same, the oldest first."""

    @property
    def last(self) -> int:
        """When its latest reward came."""
        return max((counter.last for counter in self.versions.values()), default=0)

    def remember(self, key: int, bound: int) -> None:
        """Takes note of an id, and drops the oldest ones beyond the bound."""
        if key not in self.known:
            self.known.add(key)
            self.order.append(key)
        while len(self.order) > bound:
            self.known.discard(self.order.popleft())


@dataclass(frozen=True, slots=True)
class Commit:
    """What goes to the disk in one piece, and happens wholly or not at all."""

    now: int
    """When, in whole seconds since the epoch."""
    forget: Sequence[tuple[Where, str | None]] = ()
    """Versions, or whole ModelDeployments, that make room. They go before the items come."""
    items: Sequence[Item] = ()
    """Items that are counted."""


class Totals:
    """All counters of one store."""

    def __init__(self, mark: str, limits: Limits) -> None:
        """
        Args:
            mark: identity of this set of counters; another one, once a store was lost and counting begins anew.
            limits: what is taken and kept.
        """
        self.mark = mark
        self._limits = limits
        self._deployments: dict[Where, Deployment] = {}

    def of(self, where: Where) -> Mapping[str, Counter]:
        """Counters of a ModelDeployment, by version; empty if it has none."""
        found = self._deployments.get(where)
        return found.versions if found else {}

    def __iter__(self) -> Iterator[tuple[Where, Mapping[str, Counter]]]:
        """Every ModelDeployment with its counters."""
        return ((where, deployment.versions) for where, deployment in self._deployments.items())

    def judge(self, items: Iterable[Item], now: int) -> tuple[Commit, list[Outcome]]:
        """What would be done about the items, and what to tell of each. Nothing is changed yet.

        An item whose id is remembered is a duplicate, whatever else it says: the first one stands.
        """
        view = _View(self._deployments, self._limits, now)
        outcomes, credited = [], []
        for item in items:
            outcome = view.judge(item)
            outcomes.append(outcome)
            if outcome == "credited":
                credited.append(item)
        return Commit(now, view.forgotten, credited), outcomes

    def apply(self, commit: Commit) -> None:
        """Does what was judged."""
        for where, version in commit.forget:
            if version is None:
                self._deployments.pop(where, None)
            elif where in self._deployments:
                self._deployments[where].versions.pop(version, None)
        for item in commit.items:
            deployment = self._deployments.setdefault(item.where, Deployment())
            deployment.versions.setdefault(item.version, Counter()).add(item.reward, commit.now)
            if item.key is not None:
                deployment.remember(item.key, self._limits.ids)

    def dump(self) -> dict[str, Any]:
        """All of it as JSON can carry it."""
        return {
            "mark": self.mark,
            "deployments": [
                {
                    "where": where,
                    "versions": {v: [c.count, c.total, c.squares, c.last] for v, c in deployment.versions.items()},
                    "ids": list(deployment.order),
                }
                for where, deployment in self._deployments.items()
            ],
        }

    @classmethod
    def load(cls, dumped: Mapping[str, Any], limits: Limits) -> Totals:
        """What was dumped. Counters beyond a limit that was lowered since then stay; ids do not.

        Raises:
            KeyError, TypeError, ValueError: it is not what `dump` gives.
        """
        totals = cls(dumped["mark"], limits)
        for entry in dumped["deployments"]:
            deployment = Deployment({version: Counter(*counter) for version, counter in entry["versions"].items()})
            for key in entry["ids"]:
                deployment.remember(key, limits.ids)
            totals._deployments[Where(*entry["where"])] = deployment
        return totals


class _View:
    """The counters as they would be after the items judged so far."""

    def __init__(self, deployments: Mapping[Where, Deployment], limits: Limits, now: int) -> None:
        self.forgotten: list[tuple[Where, str | None]] = []
        self._deployments, self._limits, self._now = deployments, limits, now
        self._ids: set[tuple[Where, int]] = set()
        self._versions: dict[Where, set[str]] = {}
        """Versions of each ModelDeployment that an item was about, as they would be."""
        self._credited: set[tuple[Where, str]] = set()
        self._gone: set[Where] = set()

    def judge(self, item: Item) -> Outcome:
        where, deployment = item.where, self._deployments.get(item.where)
        if where in self._gone:
            deployment = None
        key = None if item.key is None else (where, item.key)
        if key is not None and (key in self._ids or (deployment is not None and item.key in deployment.known)):
            return "duplicate"
        if deployment is None and where not in self._versions and not self._room_for_deployment():
            return Refusal(
                f"there are counters of {self._limits.deployments} ModelDeployments already, all in use: check the "
                "name, or raise --max-deployments of the feedback service",
                422,
            )
        versions = self._versions.get(where)
        if versions is None:
            versions = set(deployment.versions) if deployment else set()
        if item.version not in versions and not self._room_for_version(where, deployment, versions):
            return Refusal(
                f"{where.namespace}/{where.name} has counters of {self._limits.versions} versions already, all in use: "
                "check the version, or raise --max-versions of the feedback service",
                422,
            )
        versions.add(item.version)
        self._versions[where] = versions
        self._credited.add((where, item.version))
        if key is not None:
            self._ids.add(key)
        return "credited"

    def _idle(self, last: int) -> bool:
        return self._now - last >= self._limits.forget_after

    def _room_for_deployment(self) -> bool:
        there = (self._deployments.keys() - self._gone) | self._versions.keys()
        if len(there) < self._limits.deployments:
            return True
        idle = [
            (self._deployments[where].last, where)
            for where in self._deployments.keys() - self._gone - self._versions.keys()
            if self._idle(self._deployments[where].last)
        ]
        if not idle:
            return False
        _, where = min(idle)
        self._gone.add(where)
        self.forgotten.append((where, None))
        return True

    def _room_for_version(self, where: Where, deployment: Deployment | None, versions: set[str]) -> bool:
        if len(versions) < self._limits.versions:
            return True
        idle = [
            (counter.last, version)
            for version, counter in (deployment.versions.items() if deployment else ())
            if version in versions and (where, version) not in self._credited and self._idle(counter.last)
        ]
        if not idle:
            return False
        _, version = min(idle)
        versions.remove(version)
        self.forgotten.append((where, version))
        return True
