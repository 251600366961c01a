"""Which version a user gets, and keeps: the same on every client and after every restart, without anything remembered.

Only the standard library is needed, so a client may take this file as it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TAG_HEADER = "Knative-Serving-Tag"


def assign(weights: Mapping[str, int], user: str, salt: str = "") -> str:
    """The version of a user, with probability proportional to its weight.

    Rendezvous hashing with weights: each version draws an exponentially distributed arrival time from a hash of itself
    and the user, at a rate that is its weight, and the first to arrive has the user. What follows:

    - A user moves from one version to another only if the other's weight has grown by a larger factor. In a rollout,
      then, the candidate keeps every user it has while its weight rises, and gets just as many as it needs. Where
      several weights change at once, at most 2d / (1 + d) of the users move if d of them have to, the least that any
      assignment without a memory can do (Angel and Spinka, Pairwise optimal coupling of multiple random variables,
      2019).
    - The order of the versions does not matter, nor do versions without weight.
    - Another salt is another draw: nobody is always among the first. Take one for each experiment, and keep it to its
      end. With the same salt in the next one, those who had the last candidate would be the least likely to get the
      new one, since they drew low for what is now stable, and the two groups would differ in more than chance.

    Args:
        weights: weight of each version by its id, not negative, in any unit; percent usually.
        user: whatever tells users apart and stays the same: an account, a device, a session.
        salt: tells experiments apart.

    Raises:
        ValueError: a weight is negative, or none is above zero.
    """
    if any(weight < 0 for weight in weights.values()):
        raise ValueError(f"weights must not be negative: {dict(weights)}")
    racing = [(_arrival(version, weight, user, salt), version) for version, weight in weights.items() if weight > 0]
    if not racing:
        raise ValueError("no version has a weight above zero, so nobody can be assigned: wait until one has")
    return min(racing)[1]


def _arrival(version: str, weight: int, user: str, salt: str) -> float:
    """-ln(u) / weight, for u in (0, 1) from 52 bits of a hash: half of a last place away from both ends."""
    digest = hashlib.sha256("\0".join((version, salt, user)).encode("utf-8", "surrogatepass")).digest()
    return -math.log((int.from_bytes(digest[:8], "big") >> 12) * 2.0**-52 + 2.0**-53) / weight


@dataclass(frozen=True)
class Choice:
    """The version of one user, and two ways to reach it."""

    version: str
    """The version's id. Send it with the user's feedback."""
    url: str | None
    """URL of this version alone. It answers 404 once the version has no part in the traffic any more: then choose again
    from a newer status. None if the version has no URL of its own yet."""
    headers: Mapping[str, str]
    """Headers for a request to the ModelDeployment's own URL, where Knative's `tag-header-based-routing` is enabled.
    A tag that is no longer there is ignored without a word, and the request goes to any version. Empty: no tag."""


def choose(status: Mapping[str, Any], user: str, salt: str = "") -> Choice:
    """The version of a user, by the status of a ModelDeployment as the API server gives it.

    Without a `salt` the candidate's id is one, or that of the experiment: each is a draw of its own, from its beginning
    to its end.

    The URL's host is `TAG-NAME.NAMESPACE.DOMAIN`, beside the ModelDeployment's `NAME.NAMESPACE.DOMAIN`, unless
    Knative's tag template was changed; then there are no headers.

    Raises:
        ValueError: no version has traffic yet.
    """
    versions: dict[str, Mapping[str, Any]] = {each["id"]: each for each in status.get("versions", ())}
    drawn = salt or status.get("candidate") or (status.get("experiment") or {}).get("id") or ""
    version = assign({name: each.get("weight", 0) for name, each in versions.items()}, user, drawn)
    url = versions[version].get("url")
    own, common = urlsplit(url or "").hostname or "", urlsplit(status.get("url") or "").hostname or ""
    tag = own.removesuffix(f"-{common}") if common else own
    return Choice(version, url, {TAG_HEADER: tag} if tag and tag != own else {})
