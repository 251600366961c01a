"""A version on KServe: an InferenceService in Knative mode, inside the cluster only, scaling to zero."""

from __future__ import annotations

from typing import Any

from tidegate.api.modelversion import ModelVersionSpec, Runtime
from tidegate.api.template import EnvVar, Template
from tidegate.core import names
from tidegate.core.observed import Object, name
from tidegate.core.placement import place
from tidegate.core.versions import child_metadata, stable_named
from tidegate.core.workloads import pods
from tidegate.core.workloads.knative import TEMPLATE_ANNOTATIONS

CONTAINER = "kserve-container"


def manifest(deployment: Object, version: ModelVersionSpec) -> dict[str, Any]:
    """The InferenceService of a version."""
    template = version.template
    annotations = {"serving.kserve.io/deploymentMode": "Knative"} | TEMPLATE_ANNOTATIONS
    if template.model.storage.secret:
        annotations["serving.kserve.io/storageSecretName"] = template.model.storage.secret
    spec = {"predictor": _predictor(version)}
    if template.model.transformer:
        spec["transformer"] = _transformer(version)
    metadata = child_metadata(deployment, names.child(name(deployment), version.id), version.id)
    metadata["labels"]["networking.knative.dev/visibility"] = "cluster-local"
    metadata["annotations"] = annotations
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": spec,
    }


def _component(template: Template) -> dict[str, Any]:
    """What a predictor and a transformer have in common. Replicas stand on the Revisions, so here they are zero."""
    common: dict[str, Any] = {"minReplicas": 0}
    if template.concurrency:  # KServe starts a transformer with as many workers, so no limit must not be 0
        common["containerConcurrency"] = template.concurrency
    if (limit := pods.timeout(template)) is not None:
        common["timeout"] = limit
    return common | pods.account(template)


def _predictor(version: ModelVersionSpec) -> dict[str, Any]:
    template, model = version.template, version.template.model
    placement = place(template.accelerator)
    pod_volumes, mounts = pods.volumes(template.volumes)
    identity = EnvVar(name=pods.VERSION_VARIABLE, value=version.id)
    container: dict[str, Any] = {}
    if wanted := pods.resources(template.resources, placement):
        container["resources"] = wanted
    if mounts:
        container["volumeMounts"] = mounts

    component = _component(template) | placement.pod
    if pod_volumes:
        component["volumes"] = pod_volumes
    if model.container is not None:
        container |= pods.image(model.container) | {
            "name": CONTAINER,
            "ports": [{"containerPort": model.container.port, "protocol": "TCP"}],
            "env": pods.environment(model.env, identity),
        }
        if model.args:
            container["args"] = list(model.args)
        return component | {"containers": [container]}

    runtime = version.runtime
    if runtime is None:
        raise ValueError("a version with a uri has a runtime")
    args, env = _naming(runtime, version.deployment)
    container |= {
        "modelFormat": {"name": model.format},
        "runtime": runtime.name,
        "storageUri": model.uri,
        "env": pods.environment(model.env, *env, identity),
    }
    if args or model.args:
        container["args"] = [*args, *model.args]
    return component | {"model": container}


def _naming(runtime: Runtime, deployment: str) -> tuple[list[str], list[EnvVar]]:
    """Arguments and variables that give the model the deployment's name, whatever its workload is called."""
    return (
        [stable_named(arg, deployment) for arg in runtime.args],
        [EnvVar(name=v.name, value=stable_named(v.value or "", deployment)) for v in runtime.env],
    )


def _transformer(version: ModelVersionSpec) -> dict[str, Any]:
    transformer = version.template.model.transformer
    if transformer is None:
        raise ValueError("the version has no transformer")
    container: dict[str, Any] = pods.image(transformer) | {
        "name": CONTAINER,
        # KServe adds the workload's name as the model's unless this argument is there, as a word of its own
        "args": [*transformer.args, "--model_name", version.deployment],
        "env": pods.environment(transformer.env, EnvVar(name=pods.VERSION_VARIABLE, value=version.id)),
    }
    if wanted := pods.resources(transformer.resources):
        container["resources"] = wanted
    return _component(version.template) | {"containers": [container]}
