"""The ledger: a line for each look that added to the evidence, and for each decision that moved or ended a rollout.

A line is a JSON object: what the pass went by (the sample with its cumulative counts, the weight that was asked for and
whether it was in force), what came of it (verdict and e-values of each guardrail) and the decision. Its `id` is a
digest of it, and `prev` the id of the line that it builds on, empty for the first; the status remembers the last one.

A line is written before the status. Where the operator was stopped between the two, or the status was refused, the
ledger has a line too many, on which no other builds. So whoever reads goes back from the last line by `prev`: `chains`
gives the same lines whether the operator was stopped or not.

Ahead of a line there may be one of the kind `start`, with the settings in full and all that was known before, so that
what follows can be replayed from there: whoever keeps the ledger writes it where it does not have the line before.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.core.rollout.counting import requests_read, rewards_read, written
from tidegate.core.rollout.counts import Sample

VERSION = 1
"""Of the form of the lines."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line, and what has to stand ahead of it where the ledger does not have the line that it builds on."""

    line: Line
    start: Line


def entry(
    kind: str,
    about: Mapping[str, Any],
    prev: str,
    content: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Entry:
    """A new line.

    `kind` says what it is about, such as `rollout`, and `about` which one: namespace, deployment, versions. `prev` is
    the id of the line before. `settings` is all that is decided by besides the content, `state` what was known before.
    """
    head = {"v": VERSION, "kind": kind, **about, "prev": prev}
    line = {**head, "settings": digest(settings), **content}
    line["id"] = digest(line)
    start = {**head, "kind": "start", "before": line["id"], "digest": line["settings"], "settings": settings}
    return Entry(line, {**start, "state": state})


def digest(content: Mapping[str, Any]) -> str:
    """Short, and the same for the same content."""
    return hashlib.sha256(text(content).encode()).hexdigest()[:12]


def intact(line: Line) -> bool:
    """Whether a line is as it was written."""
    return bool(digest({key: value for key, value in line.items() if key != "id"}) == line["id"])


def text(line: Line) -> str:
    """A line as it stands in the ledger, without its end."""
    return json.dumps(line, separators=(",", ":"), allow_nan=False)


# --- samples ----------------------------------------------------------------------------------------------------------


def sample_written(sample: Sample) -> dict[str, Any]:
    """A sample for JSON, which has no infinity."""
    whole = {
        "t": sample.t,
        "requests": written(sample.requests),
        "rewards": written(sample.rewards) if sample.rewards else None,
        "values": {name: value if math.isfinite(value) else str(value) for name, value in sample.values.items()},
        "troubles": dict(sample.troubles),
    }
    return {key: value for key, value in whole.items() if value}


def sample_read(raw: Mapping[str, Any]) -> Sample:
    """A sample from what `sample_written` gave."""
    return Sample(
        raw["t"],
        requests_read(raw["requests"]),
        rewards_read(raw["rewards"]) if "rewards" in raw else None,
        {name: float(value) for name, value in raw.get("values", {}).items()},
        raw.get("troubles", {}),
    )


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """The lines of one rollout, each of which builds on the one before."""

    lines: Sequence[Line]
    starts: Mapping[str, Line]
    """Lines of the kind `start`, by the id of the line that they stand ahead of."""

    @property
    def whole(self) -> bool:
        """Whether it has the first line."""
        return not self.lines[0]["prev"]

    @property
    def ended(self) -> bool:
        """Whether it has the decision that ended it."""
        return ended(self.lines[-1])


def ended(line: Line) -> bool:
    """Whether a line says how it ended."""
    return bool(line["decision"].get("ended"))


def chains(lines: Iterable[Line]) -> list[Chain]:
    """The rollouts of a ledger, in the order in which they ended or got their last line.

    Lines that none builds on, though another builds on the same one, are left out: nothing came of them. So is a first
    line that stands alone though another rollout follows.
    """
    lines = list(lines)
    starts = {line["before"]: line for line in lines if line["kind"] == "start"}
    by_id = {line["id"]: line for line in lines if line["kind"] != "start"}
    built_upon = {line["prev"] for line in by_id.values()}
    last: dict[str, list[Line]] = {}
    for identity in {line["id"]: None for line in lines if line["kind"] != "start"}:
        if identity in built_upon:
            continue
        back = [by_id[identity]]
        while back[-1]["prev"] in by_id:
            back.append(by_id[back[-1]["prev"]])
        root = back[-1]["prev"] or back[-1]["id"]
        last.pop(root, None)  # the later one counts, at its own place
        last[root] = back[::-1]
    found = [
        Chain(each, {line["id"]: starts[line["id"]] for line in each if line["id"] in starts}) for each in last.values()
    ]
    return [chain for chain in found if not _alone(chain) or chain is found[-1]]


def _alone(chain: Chain) -> bool:
    return chain.whole and len(chain.lines) == 1 and not chain.ended
