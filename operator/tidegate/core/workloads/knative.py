"""A version on bare Knative: a Configuration. It has no Route of its own, so nothing reaches it but ours."""

from __future__ import annotations

from typing import Any

from tidegate.api.modelversion import ModelVersionSpec
from tidegate.api.template import EnvVar
from tidegate.core import names
from tidegate.core.observed import Object, name
from tidegate.core.placement import place
from tidegate.core.versions import child_metadata
from tidegate.core.workloads import pods

TEMPLATE_ANNOTATIONS = {
    "autoscaling.knative.dev/min-scale": "0",
    "serving.knative.dev/no-gc": "true",  # Tidegate itself decides which version goes, and when
}


def manifest(deployment: Object, version: ModelVersionSpec) -> dict[str, Any]:
    """The Configuration of a version."""
    template = version.template
    container = template.model.container
    if container is None:
        raise ValueError("a version on Knative has a container")
    placement = place(template.accelerator)
    pod_volumes, mounts = pods.volumes(template.volumes)
    user: dict[str, Any] = pods.image(container) | {
        "name": "user-container",
        "ports": [{"containerPort": container.port}],
        "env": pods.environment(template.model.env, EnvVar(name=pods.VERSION_VARIABLE, value=version.id)),
    }
    if template.model.args:
        user["args"] = list(template.model.args)
    if wanted := pods.resources(template.resources, placement):
        user["resources"] = wanted
    spec: dict[str, Any] = {"containers": [user], "containerConcurrency": template.concurrency}
    if mounts:
        user["volumeMounts"] = mounts
        spec["volumes"] = pod_volumes
    if (limit := pods.timeout(template)) is not None:
        spec |= {"timeoutSeconds": limit, "responseStartTimeoutSeconds": limit}
    spec |= pods.account(template) | placement.pod
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Configuration",
        "metadata": child_metadata(deployment, names.child(name(deployment), version.id), version.id),
        "spec": {
            "template": {
                "metadata": {
                    "labels": names.labels(name(deployment), version.id),
                    "annotations": TEMPLATE_ANNOTATIONS,
                },
                "spec": spec,
            }
        },
    }
