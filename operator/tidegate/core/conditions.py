"""What the status says: Ready, Servable, Progressing, VersionsReady, each with a reason and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tidegate.api.conditions import Condition, Truth
from tidegate.core import route
from tidegate.core.lifecycle import Turn, alone
from tidegate.core.observed import Object, condition, up_to_date
from tidegate.core.views import View

_WAITING = frozenset(
    {"Paused", "AwaitingApproval", "NoCounts", "BudgetTooSmall", "DeadlineExceeded", "WinnerFound", "NoChallenger"}
)
"""Reasons for which a rollout or an experiment stands until somebody does something."""


@dataclass(frozen=True)
class Problem:
    """Something that only a person can mend."""

    reason: str
    message: str


Said = tuple[Truth, str, str]
"""Status, reason and message of a condition."""


@dataclass(frozen=True)
class Scene:
    """Everything that the conditions speak of."""

    desired: str
    """Version that the spec asks for."""
    turn: Turn
    views: Mapping[str, View]
    route: Object | None
    problem: Problem | None = None
    note: str = ""
    """A remark about the versions, such as a name that was used before."""


def conditions(scene: Scene, generation: int, now: datetime) -> list[Condition]:
    """The conditions of a ModelDeployment, as of now."""
    said = {
        "Ready": _ready(scene),
        "Servable": _servable(scene),
        "Progressing": _progressing(scene),
        "VersionsReady": _versions_ready(scene),
    }
    return [
        Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message[:4096],
            observed_generation=generation,
            last_transition_time=now,
        )
        for kind, (status, reason, message) in said.items()
    ]


def _shown(scene: Scene, identity: str) -> str:
    view = scene.views.get(identity)
    return f"{view.spec.template.model.version} ({identity})" if view else identity


def _ready(scene: Scene) -> Said:
    status = scene.turn.status
    if scene.problem:
        return "False", scene.problem.reason, scene.problem.message
    if status.stable is None:
        return _given_up(scene) or _versions_ready(scene)
    pinned = status.pinned
    if not (pinned and pinned.won) and (apart := _apart(scene)):
        return apart
    if status.rollout:
        return (
            "Unknown",
            "RollingOut",
            f"{_shown(scene, status.rollout.candidate)} is being rolled out; see Progressing",
        )
    if scene.views[status.stable].ready == "False":
        return _versions_ready(scene)
    servable, told = _servable(scene), _shown(scene, status.stable)
    if servable[0] != "True":
        return "Unknown", "RouteNotReady", servable[2]
    if on := scene.turn.experiment:  # weights may move often: that it answers is what matters
        split = ", ".join(f"{arm.name} {arm.weight}%" for arm in on.arms if arm.weight) or "control 100%"
        return "True", "Experimenting", f"{split}; see Progressing"
    if not route.settled(scene.route, alone(scene.views[status.stable])):
        return "Unknown", "RouteNotReady", f"the gateway is taking on that {told} serves all requests"
    return "True", "Serving", f"{told} serves all requests"


def _given_up(scene: Scene) -> Said | None:
    """What to say where the version of the spec was given up."""
    rejected = scene.turn.status.rejected
    if rejected is None:
        return None
    return "False", rejected.reason, f"{_shown(scene, rejected.id)} is not tried again: {rejected.message}"


def _apart(scene: Scene) -> Said | None:
    """What to say where spec and traffic differ on purpose."""
    if given_up := _given_up(scene):
        return given_up
    pinned = scene.turn.status.pinned
    if pinned and pinned.won:
        ways = "make it spec.model and drop it from the challengers, or `tidegate undo`"
        has = "has all requests" if scene.turn.status.stable == pinned.to else "is to have all requests"
        return (
            "False",
            "WinnerServing",
            f"{_shown(scene, pinned.to)} has won and {has}, the spec asks for {_shown(scene, pinned.over)}: {ways}",
        )
    if pinned:
        ways = "change the spec, or `tidegate retry` for what it asks"
        return (
            "False",
            "Undone",
            f"the spec asks for {_shown(scene, pinned.over)}, traffic goes to {_shown(scene, pinned.to)}: {ways}",
        )
    return None


def _servable(scene: Scene) -> Said:
    if scene.turn.status.stable is None:
        return "False", "NoVersion", "no version has been ready yet"
    if scene.route is None:
        return "Unknown", "RouteNotReady", "the Route is being made"
    ready = condition(scene.route)
    if up_to_date(scene.route) and ready["status"] == "True":
        return "True", "RouteReady", "the gateway sends requests to a version that is ready"
    carrying = {t.revision for t in route.in_force(scene.route) if t.percent}
    if any(part.name in carrying and part.ready == "True" for view in scene.views.values() for part in view.revisions):
        return (
            "True",
            "RouteChanging",
            "the gateway sends requests to a version that is ready, and is taking a change on",
        )
    why = ": ".join(str(part) for part in (ready.get("reason"), ready.get("message")) if part)
    return (
        "False" if ready["status"] == "False" else "Unknown",
        "RouteNotReady",
        f"the Route is not ready: {why or 'no news of it yet'}",
    )


def _progressing(scene: Scene) -> Said:
    status, coming = scene.turn.status, scene.turn.next
    if scene.problem:
        return "False", scene.problem.reason, scene.problem.message
    if status.stable is None:
        starting = scene.views.get(scene.turn.goal or "")
        if starting and starting.ready == "False":
            return _versions_ready(scene)
        return _given_up(scene) or ("True", "Starting", f"{_shown(scene, scene.desired)} is starting")
    if status.rollout and coming:
        new = [scene.views[i] for i in (status.rollout.candidate, status.rollout.baseline) if i]
        failed = coming.reason == "CandidateNotReady" and any(view.ready == "False" for view in new)
        stuck = failed or coming.reason in _WAITING
        return (
            "False" if stuck else "True",
            coming.reason,
            f"{_shown(scene, status.rollout.candidate)}: {coming.message}",
        )
    if apart := _apart(scene):
        return "False", apart[1], apart[2]
    if (on := scene.turn.experiment) and (stand := scene.turn.stand):
        failed = any(scene.views[arm.version].ready == "False" for arm in on.challengers)
        stuck = stand.reason in _WAITING or (stand.reason == "CandidateNotReady" and failed)
        return "False" if stuck else "True", stand.reason, stand.message
    return "False", "AtRest", f"{_shown(scene, status.stable)} is the version of the spec and has all requests"


def _versions_ready(scene: Scene) -> Said:
    if scene.problem:
        return "False", scene.problem.reason, scene.problem.message
    status = scene.turn.status
    tested = [arm.version for arm in scene.turn.experiment.challengers] if scene.turn.experiment else []
    wanted = dict.fromkeys(i for i in (status.stable, scene.turn.goal, *tested) if i in scene.views)
    states = {identity: scene.views[identity].ready for identity in wanted if identity is not None}
    note = f"; {scene.note}" if scene.note else ""
    failures: tuple[tuple[Truth, str], ...] = (("False", "VersionFailed"), ("Unknown", "VersionStarting"))
    for truth, reason in failures:
        found = [identity for identity, ready in states.items() if ready == truth]
        if found:
            told = "; ".join(f"{_shown(scene, identity)}: {scene.views[identity].trouble}" for identity in found)
            return truth, reason, told + note
    return "True", "VersionsReady", "every version that has traffic or is to get it is ready" + note
