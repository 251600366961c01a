"""What the ledger is to say of a pass over a judged rollout."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tidegate import __version__
from tidegate.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus
from tidegate.api.rollout import RolloutStatus
from tidegate.core.lifecycle import Seen, Turn
from tidegate.core.observed import Object, name
from tidegate.core.rollout import ledger
from tidegate.core.rollout.findings import State, noted
from tidegate.core.rollout.ledger import Entry

ELSEWHERE = ("CandidateNotReady", "StableFailed")
"""Decisions that the evidence has no part in."""


def record(
    deployment: Object,
    spec: ModelDeploymentSpec,
    old: ModelDeploymentStatus,
    new: ModelDeploymentStatus,
    turn: Turn,
    now: datetime,
) -> tuple[ModelDeploymentStatus, tuple[Entry, ...]]:
    """The new status, with the last line's id in it, and the lines.

    There is one if the pass took in a sample, if a judged rollout moved or was found to be late, and if one that has
    lines has ended, whatever ended it.
    """
    entries = []
    was, seen, rollout = old.rollout, turn.seen, new.rollout
    if was and _line(was) and not (seen and _same(was, seen.before)) and not (rollout and _same(was, rollout)):
        entries.append(_entry(deployment, spec, was, {"weight": was.weight, "decision": _end(old, new, was)}, now))
    if seen and (decision := _decision(old, new, seen)):
        entries.append(_entry(deployment, spec, seen.before, _seen(seen) | {"decision": decision}, now))
        if rollout:
            state = noted(rollout.state, entries[-1].line["id"])
            new = new.model_copy(update={"rollout": rollout.model_copy(update={"state": state})})
    return new, tuple(entries)


def settings(spec: ModelDeploymentSpec) -> dict[str, Any]:
    """All of a spec that decides about a rollout; with the defaults, which may be others in a later release."""
    return {"release": __version__} | {
        part: getattr(spec, part).model_dump(mode="json", by_alias=True) for part in ("rollout", "scaling")
    }


def _same(one: RolloutStatus, other: RolloutStatus) -> bool:
    return (one.candidate, one.stable) == (other.candidate, other.stable)


def _line(rollout: RolloutStatus) -> str:
    return State.load(rollout.state).line


def _entry(
    deployment: Object, spec: ModelDeploymentSpec, before: RolloutStatus, content: dict[str, Any], now: datetime
) -> Entry:
    about = {
        "namespace": deployment["metadata"]["namespace"],
        "deployment": name(deployment),
        "candidate": before.candidate,
        "stable": before.stable,
        "t": now.timestamp(),
    }
    return ledger.entry("rollout", about, _line(before), content, settings=settings(spec), state=before.wire())


def _decision(old: ModelDeploymentStatus, new: ModelDeploymentStatus, seen: Seen) -> dict[str, Any] | None:
    """What was decided; None if nothing was, and nothing was learnt."""
    if new.rollout is None:
        if not _line(seen.before) and seen.sample is None:
            return None  # it ended before anything was learnt
        return _end(old, new, seen.before, "Degraded" if seen.next is None else seen.next.reason)
    assert seen.next is not None  # noqa: S101
    reason, after = seen.next.reason, new.rollout
    moved = (after.step, after.weight) != (seen.before.step, seen.before.weight)
    progress = old.condition("Progressing")
    late = reason == "DeadlineExceeded" and not (progress and progress.reason == reason)
    if seen.sample is None and not moved and not late:
        return None
    decision: dict[str, Any] = {"reason": reason, "step": after.step, "weight": after.weight}
    return decision | {"message": seen.next.message} if moved or late else decision


def _end(
    old: ModelDeploymentStatus, new: ModelDeploymentStatus, rollout: RolloutStatus, otherwise: str = ""
) -> dict[str, Any]:
    """How a rollout ended. `otherwise`: if the status does not tell."""
    if new.stable == rollout.candidate:
        return {"ended": True, "reason": "Promoted", "weight": 100}
    if new.rejected and new.rejected != old.rejected:
        return {"ended": True, "reason": new.rejected.reason, "weight": 0, "message": new.rejected.message}
    return {"ended": True, "reason": otherwise or ("Superseded" if new.rollout else "Ended"), "weight": 0}


def _seen(seen: Seen) -> dict[str, Any]:
    """What the pass went by, and what the evidence said then."""
    before, after = seen.before, seen.after
    content: dict[str, Any] = {"weight": before.weight, "inForce": seen.in_force, "cold": seen.cold}
    times = {part: getattr(before, part) for part in ("since", "exposed", "waiting")}
    at: dict[str, Any] = {
        "step": before.step,
        "approved": before.approved,
        "promote": before.promote,
        "baseline": before.baseline,
    }
    at |= {part: time.timestamp() for part, time in times.items() if time}
    content["at"] = {part: value for part, value in at.items() if value}
    if seen.next and seen.next.reason not in ELSEWHERE:
        content["replicas"] = dict(seen.replicas)
    if seen.sample:
        content["sample"] = ledger.sample_written(seen.sample)
    return content | findings_of(after)


def findings_of(rollout: RolloutStatus) -> dict[str, Any]:
    """What the evidence says, as far as a replay has to find it again."""
    guardrails = {
        g.name: {
            part: value
            for part, value in (
                ("verdict", g.verdict),
                ("degraded", g.degraded),
                ("healthy", g.healthy),
                ("value", g.value),
            )
            if value is not None
        }
        for g in rollout.guardrails
    }
    return {"verdict": rollout.verdict, "doubt": rollout.doubt, "guardrails": guardrails}
