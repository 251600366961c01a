"""Whether Knative's own probes can be among the counts: what the KIngresses say.

Knative probes a gateway through the same paths as users, and Envoy counts both alike, but it does so only from a
change of a KIngress until that is Ready. So a window has users' requests alone if every KIngress over the Revisions
was Ready, and the same object unchanged, at both of its ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from tidegate.core.observed import Object, condition, up_to_date

T = TypeVar("T")
LONG = 60.0
"""Seconds after which a KIngress has been Ready for long, however wrong somebody's clock may be."""
CHANGING = "a change of the Route is coming into force"
"""Why what was read meanwhile may have probes in it."""


@dataclass(frozen=True)
class KIngress:
    """One `ingresses.networking.internal.knative.dev`, as far as it matters here."""

    name: str
    uid: str
    version: str
    """Its resourceVersion: any change of spec or status makes another, a Ready that came and went too."""
    ready: bool
    """Whether it is Ready, and that is about its present spec."""
    since: float
    """When it last became Ready or ceased to be, by the clock of who wrote that, in seconds since the epoch."""
    mentions: frozenset[str]
    """Revisions that it sends requests to."""


@dataclass(frozen=True)
class Routes:
    """The KIngresses over some Revisions at one time."""

    token: str = ""
    """The same as long as none of them changes."""
    trouble: str = ""
    """Why probes may be among the counts now."""
    since: float = 0.0
    """When the latest of them became Ready, in seconds since the epoch."""
    routed: frozenset[str] = frozenset()
    """Which of the Revisions the gateway sends requests to."""


def parse(obj: Object) -> KIngress:
    """Reads one KIngress."""
    metadata, ready = obj["metadata"], condition(obj)
    since = datetime.fromisoformat(ready.get("lastTransitionTime") or metadata["creationTimestamp"])
    return KIngress(
        metadata["name"],
        metadata["uid"],
        metadata["resourceVersion"],
        ready["status"] == "True" and up_to_date(obj),
        since.timestamp(),
        frozenset(
            split["serviceName"]
            for rule in obj.get("spec", {}).get("rules") or ()
            for path in rule.get("http", {}).get("paths") or ()
            for split in path.get("splits") or ()
        ),
    )


def routes(ingresses: Iterable[KIngress], revisions: Collection[str]) -> Routes:
    """What the KIngresses of one namespace say of those Revisions."""
    over = sorted((i for i in ingresses if not i.mentions.isdisjoint(revisions)), key=lambda i: i.name)
    waiting = [ingress.name for ingress in over if not ingress.ready]
    trouble = ""
    if waiting:
        trouble = (
            f"Knative is putting a change of {', '.join(waiting)} into force; until it is done, its probes count as "
            "requests. If that lasts: kubectl describe kingress"
        )
    mentioned = frozenset(revision for ingress in over for revision in ingress.mentions).intersection(revisions)
    token = " ".join(f"{ingress.uid}@{ingress.version}" for ingress in over)
    return Routes(token, trouble, max((ingress.since for ingress in over), default=0.0), mentioned)


class Settling(Generic[T]):
    """Whether probes that were over before a reading can still turn up in what is read.

    Counters have them at once, histograms only once the gateway has merged them: what its uptime tells, which it sets
    as it ends a merge. So times of responses are known again once every pod's uptime has moved on since the KIngresses
    were first seen as they are now.
    """

    def __init__(self) -> None:
        self._seen: dict[T, tuple[str, dict[str, int] | None]] = {}

    def settled(self, key: T, routes: Routes, uptimes: Mapping[str, int], now: float) -> bool:
        """Whether histograms that were read just now have no probes but old ones; uptimes are in seconds, by pod.

        `now` is only asked how long ago a KIngress became Ready when it is first seen, as after a restart.
        """
        token, then = self._seen.get(key, ("", None))
        if key not in self._seen or token != routes.token:
            then = None if now - routes.since > LONG else dict(uptimes)
        elif then is not None:
            moved = all(uptimes[pod] != uptime for pod, uptime in then.items() if pod in uptimes)
            then = None if moved else then
        self._seen[key] = (routes.token, then)
        return then is None

    def keep(self, keys: Collection[T]) -> None:
        """Forgets all keys but those."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}
