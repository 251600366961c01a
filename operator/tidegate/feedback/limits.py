"""How much the service takes, so that its memory, its disk and its metrics stay bounded whatever is sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """All of them. With the defaults, all used up, counters and ids take 110 MB of memory."""

    deployments: int = 100
    """ModelDeployments with counters."""
    versions: int = 50
    """Versions of each ModelDeployment with counters."""
    ids: int = 10_000
    """Ids of items that are remembered for each ModelDeployment, the latest ones."""
    forget_after: int = 30 * 86_400
    """Seconds without a reward after which a version, or a whole ModelDeployment, makes room for a new one."""
    body: int = 256 * 1024
    """Bytes of a request's body."""
    batch: int = 1000
    """Items of a request."""
    id_length: int = 256
    """Characters of an item's id."""
    in_flight: int = 32 * 1024 * 1024
    """Bytes of bodies that are being read or waited for at a time, over all connections."""
