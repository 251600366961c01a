"""Actions that somebody asks for through the annotation `tidegate.dev/request`.

The annotation holds `<verb> [<version>] [#<anything>]`; each value is acted on once, and status.request says what
became of it. It states which version it means, so a late one cannot hit another version, and it suits GitOps:
written in a repository it is acted on when it arrives and never again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from tidegate.api.experiment import ExperimentStatus
from tidegate.api.modeldeployment import REQUEST_ANNOTATION, ModelDeploymentStatus, Pinned, Rejected, RequestStatus
from tidegate.api.modelversion import ModelVersionSpec
from tidegate.core import experiment
from tidegate.core.observed import Object
from tidegate.core.rollout.plan import Planned

VERBS = ("approve", "promote", "abort", "undo", "retry")
_FORM = re.compile(rf"({'|'.join(VERBS)})(?: +([A-Za-z0-9._-]+)(?:/([0-9]{{1,3}}))?)?(?: *#.*)?", re.DOTALL)


REMEMBERED = 10
"""Requests that are remembered: one that comes back from a Git repository is not acted on again."""


class Refused(Exception):
    """The action cannot be done; the message says why, and what can."""


def take(
    deployment: Object,
    status: ModelDeploymentStatus,
    desired: str,
    plan: Sequence[Planned],
    records: Iterable[ModelVersionSpec],
    now: datetime,
) -> ModelDeploymentStatus:
    """The status after the request that the deployment carries, or as it was if there is none that is new.

    `desired` is the id of the spec's version, `plan` the steps of the rollout that is on.
    """
    value = deployment["metadata"].get("annotations", {}).get(REQUEST_ANNOTATION, "").strip()[:512]
    mark = hashlib.sha256(value.encode()).hexdigest()[:8]
    if not value or mark in status.acted:
        return status
    try:
        status, message = _act(value, status, desired, plan, list(records), now)
        accepted = True
    except Refused as refusal:
        message, accepted = str(refusal), False
    request = RequestStatus(value=value, accepted=accepted, message=message[:1024], at=now)
    return status.model_copy(update={"request": request, "acted": [mark, *status.acted][:REMEMBERED]})


def _act(
    value: str,
    status: ModelDeploymentStatus,
    desired: str,
    plan: Sequence[Planned],
    records: list[ModelVersionSpec],
    now: datetime,
) -> tuple[ModelDeploymentStatus, str]:
    match = _FORM.fullmatch(value)
    if not match:
        raise Refused(f"not understood: a request is one of {', '.join(VERBS)}, then a version if it needs one")
    verb, subject, step = match[1], match[2], match[3]
    match verb:
        case "undo":
            return _undo(subject, status, desired, records, now)
        case "retry":
            return _retry(status, desired)

    rollout = status.rollout
    if rollout is None and status.experiment and not status.pinned:
        return _of_experiment(verb, subject, status, status.experiment, desired, records)
    if rollout is None:
        raise Refused("no rollout is on")
    named = {record.template.model.version for record in records if record.id == rollout.candidate}
    if subject is not None and subject != rollout.candidate and subject not in named:
        raise Refused(f"the candidate is {rollout.candidate}, not {subject}")
    match verb:
        case "abort":
            return _abort(status, rollout.candidate, desired, now)
        case "promote":
            rollout = rollout.model_copy(update={"promote": True})
            message = f"{rollout.candidate} gets all requests as soon as it has the replicas for them"
        case _:  # approve
            at = int(step) if step else rollout.step
            if at != rollout.step or not 1 <= at <= len(plan) or not plan[at - 1].approval or rollout.approved >= at:
                raise Refused(f"step {at} does not wait for approval; the rollout is at step {rollout.step}")
            rollout = rollout.model_copy(update={"approved": at})
            message = f"step {at} of {rollout.candidate} is approved"
    return status.model_copy(update={"rollout": rollout}), message


def _retry(status: ModelDeploymentStatus, desired: str) -> tuple[ModelDeploymentStatus, str]:
    tested = status.experiment
    if not (status.rejected or status.pinned or tested):
        raise Refused("nothing to retry: the version of the spec was neither given up nor undone, no experiment is on")
    told = f"{desired} and its challengers are compared anew" if tested else f"{desired} is tried again"
    return status.model_copy(update={"rejected": None, "pinned": None, "experiment": None}), told


def _of_experiment(
    verb: str,
    subject: str | None,
    status: ModelDeploymentStatus,
    tested: ExperimentStatus,
    desired: str,
    records: list[ModelVersionSpec],
) -> tuple[ModelDeploymentStatus, str]:
    """Takes challengers out, all of them or one, or gives one all requests."""
    names = {record.id: record.template.model.version for record in records}
    there = tested.challengers
    chosen = [arm for arm in there if subject in (None, arm.name)]
    if not chosen:  # an arm's own name comes before that of a version
        chosen = [arm for arm in there if subject in (arm.version, names.get(arm.version))]
    listed = ", ".join(arm.name for arm in there) or "none"
    match verb:
        case "abort":
            if not chosen:
                raise Refused(f"no challenger {subject or ''} is in the experiment; there are: {listed}")
            for arm in chosen:
                tested = experiment.without(tested, arm.version, "Aborted", "aborted on request")
            told = f"{', '.join(arm.name for arm in chosen)} out of the experiment; `tidegate retry` begins it anew"
            return status.model_copy(update={"experiment": tested}), told
        case "promote":
            gone = next((arm for arm in tested.arms if arm.name == subject and arm.out), None)
            if gone:
                raise Refused(f"{gone.name} is out ({gone.out}); `tidegate retry` begins anew. Still in: {listed}")
            if subject is None or len(chosen) != 1:
                raise Refused(f"say which challenger is to get all requests; there are: {listed}")
            pinned = Pinned(to=chosen[0].version, over=desired, won=True)
            return status.model_copy(update={"pinned": pinned}), f"{chosen[0].name} gets all requests"
        case _:
            raise Refused(f"an experiment is on, which has no pauses; say --arm with one of: {listed}")


def _abort(
    status: ModelDeploymentStatus, candidate: str, desired: str, now: datetime
) -> tuple[ModelDeploymentStatus, str]:
    """Gives the candidate up. If it was on its way by an undo, the undo is what is given up."""
    if candidate != desired and status.stable == desired:
        if status.experiment and status.pinned and status.pinned.won:
            tested = experiment.without(status.experiment, candidate, "Aborted", "aborted on request")
            return status.model_copy(update={"pinned": None, "experiment": tested}), f"{candidate} is given up"
        return status.model_copy(update={"pinned": None}), f"the undo to {candidate} is called off"
    rejected = Rejected(
        id=desired, reason="Aborted", message="aborted on request; `tidegate retry` tries it again", at=now
    )
    return status.model_copy(update={"rejected": rejected, "pinned": None}), f"{candidate} is given up"


def _undo(
    subject: str | None, status: ModelDeploymentStatus, desired: str, records: list[ModelVersionSpec], now: datetime
) -> tuple[ModelDeploymentStatus, str]:
    """Back to an earlier stable version; without one named, to the latest, or out of the rollout that is on.

    Where a winner serves, what the spec asks for is the version before it, kept or not.
    """
    if subject is None and status.rollout:
        return _abort(status, status.rollout.candidate, desired, now)
    by_id = {record.id: record.template.model.version for record in records}
    before = [desired] if status.pinned and status.pinned.won else []
    kept = list(dict.fromkeys(identity for identity in (*before, *status.kept) if identity in by_id))
    if not kept:
        raise Refused("no earlier version is kept (spec.rollout.keepVersions says how many are)")
    target = next((k for k in kept if subject in (None, k, by_id[k])), None)
    if target is None:
        raise Refused(f"{subject} is not kept; there are: {', '.join(f'{by_id[k]} ({k})' for k in kept)}")
    if target == desired:  # the spec asks for it anyway: an earlier undo is taken back, or the winner of a test
        update: dict[str, Any] = {"pinned": None, "rejected": None}
        if status.experiment and status.pinned:
            update["experiment"] = experiment.without(
                status.experiment, status.pinned.to, "Aborted", "undone on request"
            )
        return status.model_copy(update=update), f"back to {target}, as the spec asks"
    return (
        status.model_copy(update={"pinned": Pinned(to=target, over=desired), "rejected": None, "experiment": None}),
        f"back to {target}; the spec still asks for {desired}",
    )
