"""What has to be counted for a ModelDeployment, as its status stands."""

from __future__ import annotations

from pydantic import ValidationError

from tidegate.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus
from tidegate.core.observed import Object
from tidegate.core.rollout.counts import Ask
from tidegate.core.rollout.guardrails import guardrails
from tidegate.core.rollout.plan import judged


def ask(deployment: Object) -> Ask | None:
    """What to count; None while nothing is judged, or where it cannot be said yet."""
    if not (deployment.get("status") or {}).get("rollout"):
        return None
    try:
        spec = ModelDeploymentSpec.model_validate(deployment["spec"])
        status = ModelDeploymentStatus.model_validate(deployment["status"])
    except ValidationError:
        return None  # the pass over it says so
    rollout = status.rollout
    if rollout is None or not judged(spec.rollout):
        return None
    revisions = {version.id: version.revision for version in status.versions}
    stable, candidate = revisions.get(rollout.stable), revisions.get(rollout.candidate)
    if not stable or not candidate:
        return None
    metadata = deployment["metadata"]
    words = {
        "{namespace}": metadata["namespace"],
        "{deployment}": metadata["name"],
        "{candidate}": candidate,
        "{stable}": stable,
    }
    queries = {}
    for g in guardrails(spec.rollout):
        if g.query:
            text = g.query.promql
            for word, value in words.items():
                text = text.replace(word, value)
            queries[g.name] = text
    return Ask(
        namespace=metadata["namespace"],
        deployment=metadata["name"],
        versions={rollout.stable: stable, rollout.candidate: candidate},
        rewards=any(g.reward for g in guardrails(spec.rollout)),
        queries=queries,
    )
