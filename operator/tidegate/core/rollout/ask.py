"""What has to be counted for a ModelDeployment, as its status stands."""

from __future__ import annotations

from pydantic import ValidationError

from tidegate.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus
from tidegate.core.observed import Object
from tidegate.core.rollout import comparison
from tidegate.core.rollout.counts import Ask
from tidegate.core.rollout.guardrails import guardrails, wants_rewards
from tidegate.core.rollout.plan import judged


def ask(deployment: Object) -> Ask | None:
    """What to count; None while nothing is judged, or where it cannot be said yet."""
    told = deployment.get("status") or {}
    if not (told.get("rollout") or told.get("experiment")):
        return None
    try:
        spec = ModelDeploymentSpec.model_validate(deployment["spec"])
        status = ModelDeploymentStatus.model_validate(deployment["status"])
    except ValidationError:
        return None  # the pass over it says so
    rollout, experiment = status.rollout, status.experiment
    if rollout and judged(spec.rollout):
        stable, others, rewards = (
            rollout.baseline or rollout.stable,
            {"": rollout.candidate},
            wants_rewards(spec.rollout),
        )
    elif rollout is None and experiment and experiment.challengers and not status.pinned:
        stable, rewards = experiment.control.version, comparison.reads_rewards(spec.rollout)
        others = {arm.name: arm.version for arm in experiment.challengers}
    else:
        return None
    revisions = {version.id: version.revision for version in status.versions if version.revision}
    wanted = {stable, *others.values()} | ({rollout.stable} if rollout else set())
    if wanted - revisions.keys():
        return None
    metadata, queries = deployment["metadata"], {}
    for g in guardrails(spec.rollout):
        if g.query is None:
            continue
        for name, version in others.items():
            queries[comparison.query_name(name, g.name)] = _filled(
                g.query.promql,
                namespace=metadata["namespace"],
                deployment=metadata["name"],
                candidate=revisions[version],
                stable=revisions[stable],
            )
    return Ask(
        namespace=metadata["namespace"],
        deployment=metadata["name"],
        versions={version: revisions[version] for version in sorted(wanted)},
        rewards=rewards,
        queries=queries,
    )


def _filled(promql: str, **words: str) -> str:
    """A query with the names that it is about."""
    for word, value in words.items():
        promql = promql.replace(f"{{{word}}}", value)
    return promql
