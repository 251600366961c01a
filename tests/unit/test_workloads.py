"""Every field of a ModelDeployment does something: what exactly it changes, on each backend.

A table has one entry for each field, with all that the field changes and nothing else. Walking the CRD's schema proves
that the table is complete: a field that is added without an entry here fails `test_every_field_of_the_spec_is_tested`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from schema import nodes, whole
from tidegate.api.modeldeployment import ModelDeploymentSpec
from tidegate.api.modelversion import ModelVersionSpec, Runtime
from tidegate.core import versions, workloads

DEPLOYMENT = {"metadata": {"name": "churn", "namespace": "shop", "uid": "u1"}}
RUNTIMES = [
    {
        "metadata": {"name": name},
        "spec": {
            "supportedModelFormats": [{"name": format_, "autoSelect": True}],
            "containers": [{"name": "kserve-container", "args": args}],
        },
    }
    for name, format_, args in (
        ("rt-sklearn", "sklearn", ["--model_name={{.Name}}", "--port=8080"]),
        ("rt-onnx", "onnx", ["--model_name={{.Name}}"]),
    )
]
BASES: dict[str, dict[str, Any]] = {
    # a model's files on KServe, an image on KServe, an image on Knative
    "files": {"model": {"version": "v1", "uri": "s3://models/1", "format": "sklearn"}},
    "image": {"backend": "KServe", "model": {"version": "v1", "container": {"image": "registry.test/m:1"}}},
    "knative": {"model": {"version": "v1", "container": {"image": "registry.test/m:1"}}},
}
PLACES = {  # P: the pod's spec, C: the model's container
    "files": {"P": "spec.predictor", "C": "spec.predictor.model"},
    "image": {"P": "spec.predictor", "C": "spec.predictor.containers[kserve-container]"},
    "knative": {"P": "spec.template.spec", "C": "spec.template.spec.containers[user-container]"},
}
T = "spec.transformer"
TC = f"{T}.containers[kserve-container]"
GONE = "(not there)"
KSERVE = ("files", "image")
OWNER = {
    "apiVersion": "tidegate.dev/v1alpha1",
    "kind": "ModelDeployment",
    "name": "churn",
    "uid": "u1",
    "controller": True,
    "blockOwnerDeletion": False,
}


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(dict(base))
    for key, value in change.items():
        inner = out.get(key)
        out[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def version(spec: Mapping[str, Any]) -> ModelVersionSpec:
    """The record of the spec's version, under an id that does not change with the template."""
    template = ModelDeploymentSpec.model_validate(spec).template
    made = versions.record(DEPLOYMENT, template, RUNTIMES, [])
    return made.model_copy(update={"id": "v1-00000000"})


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of an object by their paths; list items by their name where they have one."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from flat(child, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        for item in value:
            yield from flat({k: v for k, v in item.items() if k != "name"}, f"{path}[{item['name']}]")
    else:
        yield path, value


def workload(spec: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flat(workloads.manifest(DEPLOYMENT, version(spec))))


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        path: after.get(path, GONE)
        for path in before.keys() | after.keys()
        if before.get(path, GONE) != after.get(path, GONE)
    }


@dataclass(frozen=True)
class Case:
    """A field, a change of it, and everything that this changes in the workload."""

    field: str
    change: dict[str, Any]
    expected: dict[str, Any]
    on: tuple[str, ...] = ("files", "image", "knative")
    start: dict[str, Any] | None = None
    """What the spec has besides, before and after."""

    def __str__(self) -> str:
        return self.field


def env(entry: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"env": [{"name": "A"} | entry]}}


def volume(**source: Any) -> dict[str, Any]:
    return {"volumes": [{"name": "extra", "mountPath": "/extra"} | source]}


def mounted(source: dict[str, Any], *, read_only: bool = True) -> dict[str, Any]:
    return {
        "C.volumeMounts[extra].mountPath": "/extra",
        "C.volumeMounts[extra].readOnly": read_only,
    } | {f"P.volumes[extra].{path}": value for path, value in source.items()}


GPU: dict[str, Any] = {"accelerator": {}}
TRANSFORMER = {"model": {"transformer": {"image": "registry.test/t:1"}}}
NODES = "P.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists"}


def transformer(**more: Any) -> dict[str, Any]:
    return {"model": {"transformer": more}}


def toleration(**more: Any) -> dict[str, Any]:
    return {"accelerator": {"tolerations": [{"key": "spot"} | more]}}


CASES = [
    # the model
    Case("model.uri", {"model": {"uri": "gs://m/2"}}, {"C.storageUri": "gs://m/2"}, on=("files",)),
    Case(
        "model.format",
        {"model": {"format": "onnx"}},
        {"C.modelFormat.name": "onnx", "C.runtime": "rt-onnx"},
        on=("files",),
    ),
    Case("model.runtime", {"model": {"runtime": "rt-onnx"}}, {"C.runtime": "rt-onnx"}, on=("files",)),
    Case(
        "model.container.image",
        {"model": {"container": {"image": "registry.test/m:2"}}},
        {"C.image": "registry.test/m:2"},
        on=("image", "knative"),
    ),
    Case(
        "model.container.command[]",
        {"model": {"container": {"command": ["serve", "now"]}}},
        {"C.command": ["serve", "now"]},
        on=("image", "knative"),
    ),
    Case(
        "model.container.port",
        {"model": {"container": {"port": 9000}}},
        {"C.ports": [{"containerPort": 9000}]},
        on=("knative",),
    ),
    Case(
        "model.container.port",
        {"model": {"container": {"port": 9000}}},
        {"C.ports": [{"containerPort": 9000, "protocol": "TCP"}]},
        on=("image",),
    ),
    Case(
        "model.args[]",
        {"model": {"args": ["--workers=2"]}},
        {"C.args": ["--model_name=churn", "--workers=2"]},
        on=("files",),
    ),
    Case("model.args[]", {"model": {"args": ["--workers=2"]}}, {"C.args": ["--workers=2"]}, on=("image", "knative")),
    Case("model.env[].name", {"model": {"env": [{"name": "A"}]}}, {"C.env[A]": {}}),
    Case("model.env[].value", env({"value": "1"}), {"C.env[A].value": "1"}),
    *(
        Case(
            f"model.env[].valueFrom.{source}.{part}",
            env({"valueFrom": {source: {"name": "n", "key": "k"} | {part: "other"}}}),
            {f"C.env[A].valueFrom.{source}.{part}": "other"},
            start=env({"valueFrom": {source: {"name": "n", "key": "k"}}}),
        )
        for source in ("secretKeyRef", "configMapKeyRef")
        for part in ("name", "key")
    ),
    Case(
        "model.storage.secret",
        {"model": {"storage": {"secret": "minio"}}},
        {"metadata.annotations.serving.kserve.io/storageSecretName": "minio"},
        on=("files",),
    ),
    # the transformer, which is there for KServe only
    Case(
        "model.transformer.image",
        TRANSFORMER,
        {
            f"{TC}.image": "registry.test/t:1",
            f"{TC}.args": ["--model_name", "churn"],
            f"{TC}.env[TIDEGATE_VERSION].value": "v1-00000000",
            f"{T}.minReplicas": 0,
        },
        on=KSERVE,
    ),
    Case(
        "model.transformer.command[]",
        transformer(command=["run"]),
        {f"{TC}.command": ["run"]},
        on=KSERVE,
        start=TRANSFORMER,
    ),
    Case(
        "model.transformer.args[]",
        transformer(args=["--top=3"]),
        {f"{TC}.args": ["--top=3", "--model_name", "churn"]},
        on=KSERVE,
        start=TRANSFORMER,
    ),
    Case(
        "model.transformer.env[].name",
        transformer(env=[{"name": "A"}]),
        {f"{TC}.env[A]": {}},
        on=KSERVE,
        start=TRANSFORMER,
    ),
    Case(
        "model.transformer.env[].value",
        transformer(env=[{"name": "A", "value": "1"}]),
        {f"{TC}.env[A].value": "1"},
        on=KSERVE,
        start=TRANSFORMER,
    ),
    *(
        Case(
            f"model.transformer.env[].valueFrom.{source}.{part}",
            transformer(env=[{"name": "A", "valueFrom": {source: {"name": "n", "key": "k"} | {part: "other"}}}]),
            {f"{TC}.env[A].valueFrom.{source}.{part}": "other"},
            on=KSERVE,
            start=merged(
                TRANSFORMER, transformer(env=[{"name": "A", "valueFrom": {source: {"name": "n", "key": "k"}}}])
            ),
        )
        for source in ("secretKeyRef", "configMapKeyRef")
        for part in ("name", "key")
    ),
    *(
        Case(
            f"model.transformer.resources.{part}{{}}",
            transformer(resources={part: {"cpu": 2, "memory": "1Gi"}}),
            {f"{TC}.resources.{part}.cpu": "2", f"{TC}.resources.{part}.memory": "1Gi"},
            on=KSERVE,
            start=TRANSFORMER,
        )
        for part in ("requests", "limits")
    ),
    # resources and accelerators
    *(
        Case(
            f"resources.{part}{{}}",
            {"resources": {part: {"cpu": 2, "memory": "1Gi"}}},
            {f"C.resources.{part}.cpu": "2", f"C.resources.{part}.memory": "1Gi"},
        )
        for part in ("requests", "limits")
    ),
    Case(
        "accelerator.resource",
        {"accelerator": {"resource": "amd.com/gpu"}},
        {
            "C.resources.limits.amd.com/gpu": "1",
            "C.resources.requests.amd.com/gpu": "1",
            "P.tolerations": [{"key": "amd.com/gpu", "operator": "Exists"}],
        },
    ),
    Case(
        "accelerator.count",
        {"accelerator": {"count": 4}},
        {"C.resources.limits.nvidia.com/gpu": "4", "C.resources.requests.nvidia.com/gpu": "4"},
        start=GPU,
    ),
    Case(
        "accelerator.products[]",
        {"accelerator": {"products": ["NVIDIA-L4", "NVIDIA-A10"]}},
        {
            NODES: [
                {
                    "matchExpressions": [
                        {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4", "NVIDIA-A10"]}
                    ]
                }
            ]
        },
        start=GPU,
    ),
    Case(
        "accelerator.minMemory",
        {"accelerator": {"minMemory": "40Gi"}},
        {NODES: [{"matchExpressions": [{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["40959"]}]}]},
        start=GPU,
    ),
    Case(
        "accelerator.mig",
        {"accelerator": {"mig": "1g.10gb"}},
        {
            f"C.resources.{part}.nvidia.com/{name}": value
            for part in ("limits", "requests")
            for name, value in (("gpu", GONE), ("mig-1g.10gb", "1"))
        },
        start=GPU,
    ),
    Case(
        "accelerator.runtimeClass",
        {"accelerator": {"runtimeClass": "nvidia"}},
        {"P.runtimeClassName": "nvidia"},
        start=GPU,
    ),
    Case(
        "accelerator.tolerations[].key",
        {"accelerator": {"tolerations": [{"key": "spot"}]}},
        {"P.tolerations": [TAINT, {"key": "spot", "operator": "Exists"}]},
        start=GPU,
    ),
    Case(
        "accelerator.tolerations[].operator",
        toleration(operator="Equal"),
        {"P.tolerations": [TAINT, {"key": "spot", "operator": "Equal"}]},
        start=toleration(),
    ),
    Case(
        "accelerator.tolerations[].value",
        toleration(operator="Equal", value="yes"),
        {"P.tolerations": [TAINT, {"key": "spot", "operator": "Equal", "value": "yes"}]},
        start=toleration(),
    ),
    Case(
        "accelerator.tolerations[].effect",
        toleration(effect="NoSchedule"),
        {"P.tolerations": [TAINT, {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]},
        start=toleration(),
    ),
    # who the pods are
    Case("serviceAccountName", {"serviceAccountName": "reader"}, {"P.serviceAccountName": "reader"}),
    Case(
        "serviceAccountName",
        {"serviceAccountName": "reader"},
        {"P.serviceAccountName": "reader", f"{T}.serviceAccountName": "reader"},
        on=KSERVE,
        start=TRANSFORMER,
    ),
    Case("imagePullSecrets[].name", {"imagePullSecrets": [{"name": "pull"}]}, {"P.imagePullSecrets[pull]": {}}),
    Case(
        "imagePullSecrets[].name",
        {"imagePullSecrets": [{"name": "pull"}]},
        {"P.imagePullSecrets[pull]": {}, f"{T}.imagePullSecrets[pull]": {}},
        on=KSERVE,
        start=TRANSFORMER,
    ),
    # files for the model's container
    Case("volumes[].configMap", volume(configMap="cm"), mounted({"configMap.name": "cm"})),
    Case("volumes[].secret", volume(secret="s"), mounted({"secret.secretName": "s"})),
    Case(
        "volumes[].persistentVolumeClaim",
        volume(persistentVolumeClaim="pvc"),
        mounted({"persistentVolumeClaim.claimName": "pvc", "persistentVolumeClaim.readOnly": True}),
    ),
    Case(
        "volumes[].readOnly",
        volume(persistentVolumeClaim="pvc", readOnly=False),
        {"C.volumeMounts[extra].readOnly": False, "P.volumes[extra].persistentVolumeClaim.readOnly": False},
        start=volume(persistentVolumeClaim="pvc"),
    ),
    Case("volumes[].emptyDir", volume(emptyDir={}), mounted({"emptyDir": {}}, read_only=False)),
    Case(
        "volumes[].emptyDir.sizeLimit",
        volume(emptyDir={"sizeLimit": "1Gi"}),
        {"P.volumes[extra].emptyDir": GONE, "P.volumes[extra].emptyDir.sizeLimit": "1Gi"},
        start=volume(emptyDir={}),
    ),
    Case(
        "volumes[].name",
        {"volumes": [{"name": "other", "mountPath": "/extra", "configMap": "cm"}]},
        dict.fromkeys(mounted({"configMap.name": "cm"}), GONE)
        | {path.replace("[extra]", "[other]"): value for path, value in mounted({"configMap.name": "cm"}).items()},
        start=volume(configMap="cm"),
    ),
    Case(
        "volumes[].mountPath",
        volume(configMap="cm", mountPath="/elsewhere"),
        {"C.volumeMounts[extra].mountPath": "/elsewhere"},
        start=volume(configMap="cm"),
    ),
    # requests
    Case("timeout", {"timeout": "90s"}, {"P.timeout": 90}, on=KSERVE),
    Case("timeout", {"timeout": "90s"}, {"P.timeout": 90, f"{T}.timeout": 90}, on=KSERVE, start=TRANSFORMER),
    Case(
        "timeout",
        {"timeout": "90s"},
        {"P.timeoutSeconds": 90, "P.responseStartTimeoutSeconds": 90},
        on=("knative",),
    ),
    Case("concurrency", {"concurrency": 4}, {"P.containerConcurrency": 4}),
    Case(
        "concurrency",
        {"concurrency": 4},
        {"P.containerConcurrency": 4, f"{T}.containerConcurrency": 4},
        on=KSERVE,
        start=TRANSFORMER,
    ),
]

ELSEWHERE = {
    "backend": "test_workloads.test_backend",
    "model.version": "test_workloads.test_version_name_is_in_the_workloads_name_and_labels",
    "visibility": "test_route.test_visibility",
    "scaling.min": "test_scaling.test_each_field_is_an_annotation",
    "scaling.max": "test_scaling.test_each_field_is_an_annotation",
    "scaling.metric": "test_scaling.test_each_field_is_an_annotation",
    "scaling.target": "test_scaling.test_each_field_is_an_annotation",
    "scaling.window": "test_scaling.test_each_field_is_an_annotation",
    "scaling.idle": "test_scaling.test_each_field_is_an_annotation",
    "scaling.initial": "test_scaling.test_a_candidate_gets_its_share_of_the_replicas_first",
    "rollout.strategy": "test_plan.test_steps_of_each_strategy",
    "rollout.steps[].weight": "test_plan.test_steps_of_each_strategy",
    "rollout.steps[].pause.for": "test_plan.test_steps_of_each_strategy",
    "rollout.guardrails[].name": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].errors.maxRatio": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].errors.maxIncrease": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].latency.slowerThan": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].latency.maxRatio": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].latency.maxIncrease": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].reward.minDelta": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.guardrails[].query.promql": "test_findings.test_what_is_counted_follows_from_spec_and_status",
    "rollout.guardrails[].query.max": "test_findings.test_a_query_is_a_threshold_that_has_to_last",
    "rollout.guardrails[].query.min": "test_findings.test_a_query_is_a_threshold_that_has_to_last",
    "rollout.guardrails[].query.for": "test_findings.test_a_query_is_a_threshold_that_has_to_last",
    "rollout.risk.falseRollback": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.risk.falsePromotion": "test_findings.test_each_field_of_a_guardrail_is_what_is_judged_by",
    "rollout.risk.badResponses": "test_findings.test_a_budget_that_one_percent_exceeds_is_told_and_may_be_accepted",
    "rollout.risk.beyondBudget": "test_findings.test_a_budget_that_one_percent_exceeds_is_told_and_may_be_accepted",
    "rollout.baseline": "test_judged_rollouts.test_a_baseline_is_what_the_candidate_is_compared_with",
    "rollout.assignment": "test_findings.test_where_clients_choose_by_user_the_split_is_not_checked",
    "rollout.pace": "test_plan.test_steps_of_each_strategy",
    "rollout.deadline": "test_judged_rollouts.test_on_deadline",
    "rollout.onDeadline": "test_judged_rollouts.test_on_deadline",
    "rollout.goal": "test_experiments.test_goals",
    "rollout.promoteWinner": "test_experiments.test_the_winner_is_promoted_if_asked",
    "rollout.bandit.floor": "test_experiments.test_a_bandit_keeps_to_its_limits",
    "rollout.bandit.maxChange": "test_experiments.test_a_bandit_keeps_to_its_limits",
    "rollout.bandit.every": "test_experiments.test_a_bandit_keeps_to_its_limits",
    "rollout.bandit.halfLife": "test_experiments.test_a_bandit_follows_what_changes",
    "challengers[].name": "test_experiments.test_fixed_weights",
    "challengers[].weight": "test_experiments.test_fixed_weights",
    "rollout.paused": "test_advance.test_paused_holds_at_every_step",
    "rollout.keepVersions": "test_lifecycle.test_only_so_many_versions_are_kept",
}
"""Fields that do not change a workload, or not as a difference, and the test that shows what they do."""


@pytest.mark.parametrize(("case", "base"), [(case, base) for case in CASES for base in case.on], ids=str)
def test_a_field_changes_this_and_nothing_else(case: Case, base: str) -> None:
    before = merged(BASES[base], case.start or {})
    expected = {
        ".".join((PLACES[base].get(first, first), rest)): value
        for path, value in case.expected.items()
        for first, _, rest in [path.partition(".")]
    }
    assert difference(workload(before), workload(merged(before, case.change))) == expected


def leaves(kind: str) -> set[str]:
    """Paths of the spec that hold a value of their own. An object all of whose fields may be left out is one too."""
    found = {
        path.removeprefix("spec.")
        for path, node in nodes(whole(kind)["properties"]["spec"], "spec")
        if not {"properties", "items", "additionalProperties"} & node.keys()
        # a challenger's model is a model like spec.model, as the test below shows
        and not path.startswith("spec.challengers[].model.")
    }
    return found | {"volumes[].emptyDir"}


def test_every_field_of_the_spec_is_tested() -> None:
    assert {case.field for case in CASES} | ELSEWHERE.keys() == leaves("ModelDeployment")


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_the_tests_named_are_there(where: str) -> None:
    module, test = where.split(".")
    assert callable(getattr(importlib.import_module(module), test))


@pytest.mark.parametrize("base", BASES)
def test_a_challengers_model_makes_the_version_that_it_would_make_as_the_specs(base: str) -> None:
    whole_model = {**BASES[base]["model"], "args": ["--top=3"], "env": [{"name": "A", "value": "1"}]}
    given = merged(BASES[base], {"resources": {"limits": {"cpu": "2"}}})
    with_it = ModelDeploymentSpec.model_validate({**given, "challengers": [{"name": "deep", "model": whole_model}]})
    (challenger,) = with_it.challengers
    alone = ModelDeploymentSpec.model_validate({**given, "model": whole_model})
    assert with_it.template_of(challenger) == alone.template
    assert versions.identity(with_it.template_of(challenger)) == versions.identity(alone.template)
    assert versions.identity(with_it.template) != versions.identity(alone.template)


# --- what is not the difference that one field makes ---


def test_backend() -> None:
    kinds = {base: workloads.manifest(DEPLOYMENT, version(spec))["kind"] for base, spec in BASES.items()}
    assert kinds == {"files": "InferenceService", "image": "InferenceService", "knative": "Configuration"}
    for base, spec in BASES.items():
        said = merged(spec, {"backend": "Knative" if base == "knative" else "KServe"})
        assert workload(said) == workload(spec)


def test_version_name_is_in_the_workloads_name_and_labels() -> None:
    for spec in BASES.values():
        named = merged(spec, {"model": {"version": "Release 2".replace(" ", "-")}})
        made = versions.record(DEPLOYMENT, ModelDeploymentSpec.model_validate(named).template, RUNTIMES, [])
        found = workloads.manifest(DEPLOYMENT, made)
        assert made.id.startswith("release2-")
        assert found["metadata"]["name"] == f"churn-{made.id}"
        assert found["metadata"]["labels"]["tidegate.dev/version"] == made.id


def test_a_plain_inference_service() -> None:
    assert workloads.manifest(DEPLOYMENT, version(BASES["files"])) == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "churn-v1-00000000",
            "namespace": "shop",
            "labels": {
                "tidegate.dev/deployment": "churn",
                "tidegate.dev/version": "v1-00000000",
                "app.kubernetes.io/managed-by": "tidegate",
                "networking.knative.dev/visibility": "cluster-local",
            },
            "annotations": {
                "serving.kserve.io/deploymentMode": "Knative",
                "autoscaling.knative.dev/min-scale": "0",
                "serving.knative.dev/no-gc": "true",
            },
            "ownerReferences": [OWNER],
        },
        "spec": {
            "predictor": {
                "minReplicas": 0,
                "model": {
                    "modelFormat": {"name": "sklearn"},
                    "runtime": "rt-sklearn",
                    "storageUri": "s3://models/1",
                    "args": ["--model_name=churn"],
                    "env": [{"name": "TIDEGATE_VERSION", "value": "v1-00000000"}],
                },
            }
        },
    }


def test_a_plain_configuration() -> None:
    labels = {
        "tidegate.dev/deployment": "churn",
        "tidegate.dev/version": "v1-00000000",
        "app.kubernetes.io/managed-by": "tidegate",
    }
    assert workloads.manifest(DEPLOYMENT, version(BASES["knative"])) == {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Configuration",
        "metadata": {
            "name": "churn-v1-00000000",
            "namespace": "shop",
            "labels": labels,
            "ownerReferences": [OWNER],
        },
        "spec": {
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"autoscaling.knative.dev/min-scale": "0", "serving.knative.dev/no-gc": "true"},
                },
                "spec": {
                    "containerConcurrency": 0,
                    "containers": [
                        {
                            "name": "user-container",
                            "image": "registry.test/m:1",
                            "ports": [{"containerPort": 8080}],
                            "env": [{"name": "TIDEGATE_VERSION", "value": "v1-00000000"}],
                        }
                    ],
                },
            }
        },
    }


@pytest.mark.parametrize("base", BASES)
def test_replicas_and_traffic_are_no_part_of_a_workload(base: str) -> None:
    """A workload that changed would make Knative cut another, unjudged Revision."""
    more = {"scaling": {"min": 3, "max": 7}, "rollout": {"strategy": "Immediate"}, "visibility": "ClusterLocal"}
    assert workload(merged(BASES[base], more)) == workload(BASES[base])


@pytest.mark.parametrize("base", BASES)
def test_a_variable_of_the_user_wins_over_ours(base: str) -> None:
    found = workload(merged(BASES[base], {"model": {"env": [{"name": "TIDEGATE_VERSION", "value": "mine"}]}}))
    assert found[f"{PLACES[base]['C']}.env[TIDEGATE_VERSION].value"] == "mine"


def test_the_models_name_is_the_deployments_in_variables_of_the_runtime_too() -> None:
    made = version(BASES["files"])
    told = Runtime.model_validate({"name": "rt", "env": [{"name": "MODEL", "value": "{{.Name}}"}], "args": []})
    found = dict(flat(workloads.manifest(DEPLOYMENT, made.model_copy(update={"runtime": told}))))
    assert found["spec.predictor.model.env[MODEL].value"] == "churn"
    assert "spec.predictor.model.args" not in found


@pytest.mark.parametrize(
    ("spec", "kind", "entry", "others"),
    [
        (BASES["files"], "InferenceService", "churn-v1-00000000-predictor", set()),
        (BASES["image"], "InferenceService", "churn-v1-00000000-predictor", set()),
        (BASES["knative"], "Configuration", "churn-v1-00000000", set()),
        (
            merged(BASES["files"], TRANSFORMER),
            "InferenceService",
            "churn-v1-00000000-transformer",
            {"churn-v1-00000000-predictor"},
        ),
    ],
)
def test_where_requests_go_in(spec: dict[str, Any], kind: str, entry: str, others: set[str]) -> None:
    made = version(spec)
    assert workloads.kind(made) == kind
    assert workloads.entry(made) == entry
    assert workloads.configurations(made) == {entry} | others


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({}, ""),
        ({"conditions": [{"type": "Ready", "status": "Unknown"}]}, ""),
        (
            {"conditions": [{"type": "Ready", "status": "False", "reason": "PredictorNotReady", "message": "no pods"}]},
            "PredictorNotReady: no pods",
        ),
        (
            {
                "conditions": [{"type": "Ready", "status": "False", "reason": "PredictorNotReady"}],
                "modelStatus": {"lastFailureInfo": {"reason": "ModelLoadFailed", "message": "no such key"}},
            },
            "ModelLoadFailed: no such key",
        ),
        ({"modelStatus": {"lastFailureInfo": {"message": "no such key"}}}, "Failed: no such key"),
    ],
)
def test_a_workload_tells_why_it_is_not_ready(status: dict[str, Any], told: str) -> None:
    assert workloads.trouble({"status": status}) == told
