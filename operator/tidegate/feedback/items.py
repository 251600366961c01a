"""What clients send, read and checked: JSON in, items or words that say what to do about it out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from tidegate.feedback.limits import Limits

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DEPLOYMENT = re.compile(r"[a-z]([-a-z0-9]{0,34}[a-z0-9])?")
_VERSION = re.compile(r"[a-z][a-z0-9]{0,15}-[0-9a-f]{8}")
_FIELDS = ("deployment", "namespace", "version", "reward", "id")


class Where(NamedTuple):
    """A ModelDeployment."""

    namespace: str
    name: str


class Item(NamedTuple):
    """One reward for one response."""

    where: Where
    version: str
    """Id of the version that served the response."""
    reward: float
    """From 0 to 1."""
    key: int | None = None
    """64 bits of a hash of the item's id, None if it has none. Another id of the same ModelDeployment has the same key
    with a probability of 5e-20 for each id that is remembered."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An item that is not taken, and why."""

    error: str
    """What is wrong, and what to do."""
    status: int = 400
    """HTTP status that says the same."""


class BadRequest(Exception):
    """The request as a whole is not one; the message says what to do."""


def read(body: bytes, limits: Limits) -> tuple[bool, list[Item | Refusal]]:
    """Whether the request is a batch, and its items in their order.

    Raises:
        BadRequest: the body is not JSON, not an object, or a batch that is no list, empty or too long.
    """
    try:
        content = json.loads(body, parse_constant=_not_json)
    except RecursionError:
        raise BadRequest('the body is nested too deeply: send one object, or {"items": [...]}') from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadRequest('the body must be a JSON object: one item, or {"items": [...]}')
    if "items" not in content:
        return False, [item(content, limits)]
    if unknown := content.keys() - {"items"}:
        raise BadRequest(
            f"beside items there must be nothing, but there is {_shown(min(unknown))}: put it into each item"
        )
    items = content["items"]
    if not isinstance(items, list) or not items:
        raise BadRequest("items must be a list with at least one item")
    if len(items) > limits.batch:
        raise BadRequest(f"{len(items)} items are too many for one request: send at most {limits.batch}")
    return True, [item(each, limits) for each in items]


def item(content: Any, limits: Limits) -> Item | Refusal:
    """One item, or why it is none."""
    if not isinstance(content, dict):
        return Refusal("an item must be a JSON object with deployment, version and reward")
    if unknown := content.keys() - set(_FIELDS):
        return Refusal(f"there is no field {_shown(min(unknown))}: an item has {', '.join(_FIELDS)}")
    where = _where(content)
    if isinstance(where, Refusal):
        return where
    version, reward, id_ = content.get("version"), content.get("reward"), content.get("id")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        return Refusal(
            "version must be the id of the version that served, such as v2-1a2b3c4d: the response's header "
            "Tidegate-Version, or status.versions[].id of the ModelDeployment; not the name in the spec"
        )
    # JSON's true would be 1 to Python
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
        return Refusal("reward must be a number from 0 to 1: scale what you measure to that range")
    if id_ is None:
        return Item(where, version, float(reward))
    if not isinstance(id_, str) or not 0 < len(id_) <= limits.id_length:
        return Refusal(f"id must be a string of 1 to {limits.id_length} characters, or left out")
    digest = hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return Item(where, version, float(reward), int.from_bytes(digest, "big"))


def _where(content: Mapping[str, Any]) -> Where | Refusal:
    namespace, deployment = content.get("namespace"), content.get("deployment")
    if not isinstance(deployment, str) or not isinstance(namespace, str | None):
        return Refusal('deployment must be a string, "NAMESPACE/NAME", or the name alone with namespace beside it')
    before, slash, name = deployment.rpartition("/")
    if slash and namespace not in (None, before):
        return Refusal("deployment and namespace name two namespaces: give it in one of them only")
    return locate(before if slash else namespace or "", name)


def locate(namespace: str, name: str) -> Where | Refusal:
    """A ModelDeployment, or why there can be none of that name."""
    if not _LABEL.fullmatch(namespace):
        return Refusal(
            'the namespace is missing or no name: write deployment as "NAMESPACE/NAME", or give namespace too'
        )
    if not _DEPLOYMENT.fullmatch(name):
        return Refusal("no ModelDeployment has such a name: lower-case letters, digits and dashes, at most 36 of them")
    return Where(namespace, name)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON; a reward is a number from 0 to 1")


def _shown(text: str) -> str:
    """What a client sent, cut to what a message can bear."""
    return json.dumps(text[:40])
