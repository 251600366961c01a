"""The ModelVersion: the immutable record of one version, and the history that an undo goes back to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tidegate.api.base import Name, Type, keyed, rules
from tidegate.api.conditions import Condition
from tidegate.api.template import Env, Template, Words


class Runtime(Type):
    """The serving runtime that was picked when the version was made, and what it must be told.

    It is part of the record, since runtimes change with the release of whoever ships them, and a version does not.
    """

    name: Annotated[Name, Field(description="Name of the ServingRuntime or ClusterServingRuntime.")]
    args: Annotated[
        Words, Field(description="Arguments that give the model its stable name in place of the workload's.")
    ] = []
    env: Annotated[
        Env, Field(description="Variables that give the model its stable name in place of the workload's.")
    ] = []


class ModelVersionSpec(Type):
    """What the version is. Never changes."""

    deployment: Annotated[str, Field(description="The ModelDeployment it is a version of.", max_length=63)]
    id: Annotated[str, Field(description="The version's name as a slug, and eight digits of its hash.", max_length=63)]
    hash: Annotated[str, Field(description="SHA-256 of the template, as hexadecimal digits.", max_length=64)]
    tag: Annotated[str, Field(description="Name of this version in the Route and its URL.", max_length=63)]
    made_by: Annotated[
        str,
        Field(
            description="Field manager that wrote the template: kubectl-client-side-apply, argocd-controller, …",
            max_length=256,
        ),
    ] = ""
    template: Annotated[Template, Field(description="The template, as the spec gave it.")]
    runtime: Annotated[Runtime | None, Field(description="The serving runtime that was picked.")] = None


class ModelVersionStatus(Type):
    """What has become of it."""

    role: Annotated[
        Literal["Stable", "Candidate", "Challenger", "Kept", "Rejected", "Retired"],
        Field(
            description="Stable: has the traffic. Candidate: on its way. Challenger: in an experiment. Kept: for an "
            "undo. Rejected: given up. Retired: a record only."
        ),
    ] = "Retired"
    revision: Annotated[str | None, Field(description="The Knative Revision it is pinned to.")] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready: whether it could answer now.",
            max_length=8,
            json_schema_extra=keyed("type"),
        ),
    ] = []


class ModelVersion(Type):
    """The immutable record of one version of a ModelDeployment. Tidegate makes it; nobody needs to write one."""

    spec: Annotated[
        ModelVersionSpec,
        Field(
            description="What the version is. Never changes.",
            json_schema_extra=rules(("self == oldSelf", "a ModelVersion never changes; change the ModelDeployment")),
        ),
    ]
    status: Annotated[ModelVersionStatus, Field(description="What has become of it.")] = ModelVersionStatus()


PRINTER_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Deployment", "type": "string", "jsonPath": ".spec.deployment"},
    {"name": "Version", "type": "string", "jsonPath": ".spec.template.model.version"},
    {"name": "Role", "type": "string", "jsonPath": ".status.role"},
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)
