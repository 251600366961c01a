"""Whether Knative's own probes can be among the counts: what the KIngresses say.

Knative probes a gateway through the same paths as users, and Envoy counts both alike, but it does so only from a
change of a KIngress until that is Ready. So a window has users' requests alone if every KIngress over the Revisions
was Ready, and the same object unchanged, at both of its ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KIngress:
    """One `ingresses.networking.internal.knative.dev`, as far as it matters here."""

    name: str
    uid: str
    version: str
    """Its resourceVersion: any change of spec or status makes another, a Ready that came and went too."""
    ready: bool
    """Whether it is Ready, and that is about its present spec."""
    mentions: frozenset[str]
    """Revisions that it sends requests to."""


@dataclass(frozen=True)
class Routes:
    """The KIngresses over some Revisions at one time."""

    token: str = ""
    """The same as long as none of them changes."""
    trouble: str = ""
    """Why probes may be among the counts now."""
    routed: frozenset[str] = frozenset()
    """Which of the Revisions the gateway sends requests to."""


def parse(obj: Mapping[str, Any]) -> KIngress:
    """Reads one KIngress."""
    metadata, status = obj["metadata"], obj.get("status", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    return KIngress(
        metadata["name"],
        metadata["uid"],
        metadata["resourceVersion"],
        ready and status.get("observedGeneration") == metadata.get("generation"),
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
    return Routes(" ".join(f"{ingress.uid}@{ingress.version}" for ingress in over), trouble, mentioned)
