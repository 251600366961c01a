"""Ledgers: what was decided, whether the same comes of it again, and what other settings would have concluded.

The lines of a rollout are gone through with the operator's own functions: each sample is observed, each decision made
anew from what the pass knew. Other settings see the same samples. Those are the counts of the weights that were really
given: what other settings conclude from them can be told, what their own weights would have led to cannot.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from tidegate.api.base import seconds
from tidegate.api.evidence import Verdict
from tidegate.api.modeldeployment import Scaling
from tidegate.api.rollout import RolloutSpec, RolloutStatus
from tidegate.core.lifecycle import against
from tidegate.core.recording import findings_of
from tidegate.core.rollout import findings
from tidegate.core.rollout.advance import Facts, advance
from tidegate.core.rollout.findings import baseline_weight
from tidegate.core.rollout.ledger import VERSION, Chain, Line, chains, digest, ended, intact, sample_read
from tidegate.core.rollout.plan import plan
from tidegate.core.scaling import replicas_for

TOLERANCE = 2e-3
"""By how much e-values may differ, relatively or at all: another machine's logarithm may round otherwise."""
NEEDED = {"v", "kind", "id", "prev", "t", "settings", "decision", "candidate", "stable", "namespace", "deployment"}


class BadLedger(Exception):
    """A file that is no ledger, or one that was changed; the message says where and why."""


class At(NamedTuple):
    """Something that changed, and when (seconds since the epoch)."""

    t: float
    what: Any


@dataclass(frozen=True)
class Ledger:
    """What a file has."""

    rollouts: Sequence[Chain]
    left_out: Sequence[str] = ()
    """What was not read, and why."""


@dataclass
class Findings:
    """What some settings make of a rollout's samples."""

    verdicts: list[At] = field(default_factory=list)
    """Each verdict and when it came."""
    guardrails: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was found last."""
    notes: list[str] = field(default_factory=list)
    """What they could not see."""

    @property
    def verdict(self) -> Verdict | None:
        """The last one; None if there was no sample."""
        return self.verdicts[-1].what if self.verdicts else None

    def take(self, t: float, rollout: RolloutStatus) -> None:
        """Takes note of what is known at that time."""
        if self.verdict != rollout.verdict:
            self.verdicts.append(At(t, rollout.verdict))
        self.guardrails = findings_of(rollout)["guardrails"]


@dataclass
class Outcome:
    """What a ledger says of a rollout, and what comes of it again."""

    chain: Chain
    weights: list[At]
    """Each weight that was decided, and when."""
    found: Findings = field(default_factory=Findings)
    """With the settings that it had."""
    replayed: int = 0
    """Lines that were gone through; fewer than there are where the first ones are missing."""
    differs: str = ""
    """The first line of which something else comes now, and what."""
    other: Findings | None = None
    """With the other settings, if there are any."""

    @property
    def releases(self) -> set[str]:
        """Releases of Tidegate that decided."""
        return {start["settings"]["release"] for start in self.chain.starts.values()}


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Ledger:
    """Reads a ledger, or stdin if it is called "-". `BadLedger` if it is none."""
    try:
        if str(path) == "-":
            return parse(sys.stdin.buffer, "-")
        with path.open("rb") as lines:
            return parse(lines, str(path))
    except OSError as error:
        raise BadLedger(f"{path}: {error.strerror}") from error


def parse(lines: Iterable[bytes], path: str) -> Ledger:
    """The rollouts of a ledger's lines. What was cut off while it was written is left out; `BadLedger` for the rest."""
    found: list[Line] = []
    left_out: list[str] = []
    strange: dict[str, int] = {}
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        where = f"{path}, line {number}"
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            left_out.append(f"{where}: not JSON; it may have been cut off")
            continue
        if not isinstance(line, dict) or "v" not in line:
            raise BadLedger(f"{where}: no line of a ledger")
        if line["v"] != VERSION:
            raise BadLedger(f"{where}: its form is {line['v']}, this release reads {VERSION}; take a later release")
        if not _whole(line):
            raise BadLedger(f"{where}: it is not as it was written")
        if line["kind"] in ("rollout", "start"):
            found.append(line)
        else:
            strange[line["kind"]] = strange.get(line["kind"], 0) + 1
    if not found and left_out:
        raise BadLedger(f"{path}: no line of a ledger")
    left_out += [f"{path}: {count} lines of the kind {kind}, which is not replayed" for kind, count in strange.items()]
    return Ledger([chain for chain in chains(found) if chain.lines[0]["kind"] == "rollout"], left_out)


def _whole(line: Line) -> bool:
    if line.get("kind") == "start":
        return {"before", "state"} <= line.keys() and digest(line.get("settings", {})) == line.get("digest")
    return line.keys() >= NEEDED and intact(line)


# --- again ------------------------------------------------------------------------------------------------------------


def replay(chain: Chain, policy: RolloutSpec | None = None) -> Outcome:
    """Goes through a rollout again, as far back as the ledger has what is needed. `BadLedger` if it cannot be read."""
    outcome = Outcome(chain, _weights(chain))
    known = [index for index, line in enumerate(chain.lines) if line["id"] in chain.starts]
    if not known:
        return outcome
    lines = chain.lines[known[0] :]
    try:
        _again(lines, chain.starts, outcome)
        if policy:
            outcome.other = _otherwise(lines, chain.starts, policy)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # pydantic's are among the last
        said = f"{error.error_count()} fields cannot be read" if isinstance(error, ValidationError) else repr(error)
        raise BadLedger(f"{named(chain)}: a line cannot be understood: {said}") from error
    return outcome


def named(chain: Chain) -> str:
    """Which rollout it is."""
    first = chain.lines[0]
    return f"{first['namespace']}/{first['deployment']}, {first['stable']} to {first['candidate']}"


def _weights(chain: Chain) -> list[At]:
    out: list[At] = []
    for line in chain.lines:
        decided = line["decision"]["weight"]
        if decided != (out[-1].what if out else line["weight"]):
            out.append(At(line["t"], decided))
    return out


def _again(lines: Sequence[Line], starts: Mapping[str, Line], outcome: Outcome) -> None:
    settings = {start["digest"]: start["settings"] for start in starts.values()}
    rollout = RolloutStatus.model_validate(starts[lines[0]["id"]]["state"])
    for line in lines:
        spec = RolloutSpec.model_validate(settings[line["settings"]]["rollout"])
        rollout = _observed(rollout, line, spec)
        if "verdict" in line:
            outcome.found.take(line["t"], rollout)
            scaling = Scaling.model_validate(settings[line["settings"]]["scaling"])
            if differs := _differs(line, findings_of(rollout), _decided(rollout, line, spec, scaling)):
                outcome.differs = f"{clock(line['t'])} (line {line['id']}): {differs}"
                return
        outcome.replayed += 1
        rollout = _moved(rollout, line, spec)


def _otherwise(lines: Sequence[Line], starts: Mapping[str, Line], policy: RolloutSpec) -> Findings:
    out = Findings()
    start = starts[lines[0]["id"]]
    rollout = RolloutStatus.model_validate(start["state"])
    if lines[0]["prev"]:
        out.notes.append("the first lines are missing: guardrails that are not the recorded ones begin in the middle")
    if policy.baseline != any("baseline" in line.get("at", {}) for line in lines):
        out.notes.append(f"compared with {'the stable version' if policy.baseline else 'a baseline'}, as it was then")
    asked = {start["digest"]: _queries(start["settings"]["rollout"]) for start in starts.values()}
    wanted = _queries(policy.model_dump(by_alias=True))
    for line in lines:
        unknown = {name for name, query in wanted.items() if asked[line["settings"]].get(name) != query}
        rollout = _observed(rollout, line, policy, unknown)
        if "sample" in line:
            out.take(line["t"], rollout)
            out.notes += [
                note
                for note in (f"{name}: its query was not asked then" for name in sorted(unknown))
                if note not in out.notes
            ]
            if rollout.doubt and (doubt := f"{clock(line['t'])}: {rollout.doubt}") and not line["doubt"]:
                out.notes += [] if any(note.endswith(rollout.doubt) for note in out.notes) else [doubt]
        if out.verdict == "Degraded":
            break  # for good
        rollout = _moved(rollout, line, policy)
    return out


def _queries(rollout: Mapping[str, Any]) -> dict[str, str]:
    return {g["name"]: g["query"]["promql"] for g in rollout["guardrails"] or () if g.get("query")}


def _observed(rollout: RolloutStatus, line: Line, spec: RolloutSpec, unknown: Iterable[str] = ()) -> RolloutStatus:
    """The rollout with what a line's sample adds. `unknown`: queries whose values are those of others."""
    if "at" in line:
        at = line["at"]
        times = {part: _time(at[part]) if part in at else None for part in ("since", "exposed", "waiting")}
        rollout = against(rollout, at.get("baseline")).model_copy(
            update={
                "weight": line["weight"],
                "step": at.get("step", 0),
                "approved": at.get("approved", 0),
                "promote": at.get("promote", False),
                **times,
            }
        )
    if "sample" not in line:
        return rollout
    sample = sample_read(line["sample"])
    values = {name: value for name, value in sample.values.items() if name not in unknown}
    return findings.observe(rollout, spec, replace(sample, values=values), in_force=line["inForce"], cold=line["cold"])


def _moved(rollout: RolloutStatus, line: Line, spec: RolloutSpec) -> RolloutStatus:
    if ended(line):
        return rollout
    if line["decision"]["weight"] != line["weight"]:
        rollout = findings.restart(rollout, spec)
    return rollout.model_copy(update={"state": findings.noted(rollout.state, line["id"])})


def _decided(rollout: RolloutStatus, line: Line, spec: RolloutSpec, scaling: Scaling) -> dict[str, Any] | None:
    """What is decided now; None where the evidence had no part in it."""
    if rollout.verdict == "Degraded" and not rollout.promote:
        return {"reason": "Degraded", "weight": 0, "ended": True}
    if "replicas" not in line:
        return None
    now, there = _time(line["t"]), line["replicas"]

    baseline = there.get("baseline", there["candidate"])
    facts = Facts(
        in_force=line["inForce"],
        ready=lambda weight: min(there["candidate"], baseline) if baseline_weight(weight) else there["candidate"],
        replicas=lambda weight: replicas_for(weight, there["stable"], scaling),
        paused=spec.paused,
        window=timedelta(seconds=seconds(scaling.window)),
        evidence=findings.evidence(rollout, spec, line["t"]),
    )
    coming = advance(rollout, plan(spec, scaling.window, known=False), facts, now)
    if coming.late and spec.on_deadline == "Rollback":
        return {"reason": "DeadlineExceeded", "weight": 0, "ended": True}
    if coming.promoted:
        return {"reason": "Promoted", "weight": 100, "ended": True}
    return {"reason": coming.reason, "step": coming.rollout.step, "weight": coming.rollout.weight}


def _differs(line: Line, found: Mapping[str, Any], decided: Mapping[str, Any] | None) -> str:
    """The first thing that is not as it was recorded, and how it is now."""
    if found["verdict"] != line["verdict"]:
        return f"verdict {line['verdict']} is {found['verdict']} now"
    if bool(found["doubt"]) != bool(line["doubt"]):
        return f"doubt {line['doubt']!r} is {found['doubt']!r} now"
    if found["guardrails"].keys() != line["guardrails"].keys():
        return f"guardrails {', '.join(line['guardrails'])} are {', '.join(found['guardrails'])} now"
    for name, recorded in line["guardrails"].items():
        for part in sorted(recorded.keys() | found["guardrails"][name].keys()):
            was, now = recorded.get(part), found["guardrails"][name].get(part)
            if not _alike(was, now):
                return f"{name}: {part} {was} is {now} now"
    if decided is None:
        return ""
    recorded = {part: value for part, value in line["decision"].items() if part != "message"}
    return "" if decided == recorded else f"decision {_words(recorded)} is {_words(decided)} now"


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def _words(decision: Mapping[str, Any]) -> str:
    return f"{decision['reason']} at weight {decision['weight']}%"


def _time(t: float) -> datetime:
    return datetime.fromtimestamp(t, UTC)


def clock(t: float) -> str:
    """A time as a person reads it."""
    return f"{_time(t):%Y-%m-%d %H:%M:%S}"
