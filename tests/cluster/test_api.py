"""The CRDs on a real API server: what it accepts, refuses and fills in.

They are installed under a group of their own, so that this tree's CRDs are tested whatever the cluster has, and so
that no operator acts on the objects.
"""

from __future__ import annotations

import asyncio
import copy
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from live import Kubectl, KubectlError, wait_for
from pages import EXAMPLES
from schema import DEFAULTS, DEFINITIONS, nodes, whole
from tidegate.adapters.api import ApiError, connected
from tidegate.api import GROUP, crds
from tidegate.api.modeldeployment import ModelDeploymentSpec
from tidegate.api.modelversion import ModelVersionSpec
from tidegate.core import versions

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
FILES: dict[str, Any] = {"version": "v1", "uri": "s3://models/churn/1", "format": "sklearn"}
IMAGE: dict[str, Any] = {"version": "v1", "container": {"image": "registry.test/model:1"}}
ENV = [
    {"name": "PLAIN", "value": "1"},
    {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    {"name": "CONFIG", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
]
RESOURCES = {"requests": {"cpu": "500m", "memory": "1.5Gi"}, "limits": {"cpu": 2, "memory": "2Gi"}}
REST: dict[str, Any] = {
    "resources": RESOURCES,
    "accelerator": {
        "resource": "nvidia.com/gpu",
        "count": 1,
        "products": ["NVIDIA-L4"],
        "minMemory": "20G",
        "mig": "1g.10gb",
        "runtimeClass": "nvidia",
        "tolerations": [{"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
    },
    "serviceAccountName": "reader",
    "imagePullSecrets": [{"name": "pull"}],
    "volumes": [
        {"name": "scratch", "mountPath": "/scratch", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "config", "mountPath": "/config", "configMap": "c"},
        {"name": "keys", "mountPath": "/keys", "secret": "s"},
        {"name": "data", "mountPath": "/data", "persistentVolumeClaim": "p", "readOnly": False},
    ],
    "timeout": "90s",
    "concurrency": 4,
    "visibility": "ClusterLocal",
    "scaling": {"min": 1, "max": 9, "metric": "rps", "target": 50, "window": "2m", "idle": "0s", "initial": 2},
    "rollout": {
        "strategy": "ABTest",
        "steps": [{"weight": 5, "pause": {"for": "10m"}}, {"pause": {}}, {"weight": 50}],
        "guardrails": [
            {"name": "errors", "errors": {"maxRatio": 2, "maxIncrease": "0.25%"}},
            {"name": "tail", "latency": {"slowerThan": "250ms", "maxRatio": 1.1, "maxIncrease": "2%"}},
            {"name": "value", "reward": {"minDelta": -0.01}},
            {"name": "drift", "query": {"promql": "max(drift)", "max": 0.2, "min": 0.01, "for": "5m"}},
        ],
        "risk": {"falseRollback": 0.02, "falsePromotion": 0.1, "badResponses": 50, "beyondBudget": True},
        "baseline": True,
        "assignment": "User",
        "pace": "Steady",
        "deadline": "2h",
        "onDeadline": "Rollback",
        "goal": "tail",
        "promoteWinner": True,
        "bandit": {"floor": 2, "maxChange": 20, "every": "30s", "halfLife": "1h"},
        "paused": True,
        "keepVersions": 1,
    },
}
"""A value for every field of the spec, but for the model's."""
FULL_MODEL_FILES = FILES | {
    "runtime": "tidegate-sklearn",
    "args": ["--workers=2"],
    "env": ENV,
    "storage": {"secret": "s3"},
    "transformer": {
        "image": "registry.test/transformer:1",
        "command": ["serve"],
        "args": ["--top=3"],
        "env": ENV,
        "resources": RESOURCES,
    },
}
FULL_MODEL_IMAGE = {
    "version": "v1",
    "container": {"image": "registry.test/m:1", "command": ["serve"], "port": 9000},
    "args": ["--top=3"],
    "env": ENV,
}
FULL_FILES = {
    "backend": "KServe",
    "model": FULL_MODEL_FILES,
    "challengers": [{"name": "deep", "model": FULL_MODEL_FILES | {"version": "v2"}, "weight": 10}],
} | REST
FULL_IMAGE = {
    "backend": "Knative",
    "model": FULL_MODEL_IMAGE,
    "challengers": [{"name": "deep", "model": FULL_MODEL_IMAGE | {"version": "v2"}, "weight": 10}],
} | REST
VERSION = {
    "deployment": "churn",
    "id": "v1-00000000",
    "hash": "0" * 64,
    "tag": "v1",
    "madeBy": "kubectl",
    "template": {"model": FILES},
    "runtime": {"name": "rt", "args": ["--model_name={{.Name}}"], "env": ENV},
}


class Server:
    """The API server, asked about objects of the CRDs under test."""

    def __init__(self, kubeconfig: str, group: str, namespace: str) -> None:
        self.kubeconfig, self.group, self.namespace = kubeconfig, group, namespace

    def post(self, kind: str, spec: Any, *, name: str = "churn", dry: bool = True, strict: bool = False) -> Any:
        """The object as the server would keep it; `ApiError` if it refuses. By default nothing is kept."""
        body = {"apiVersion": f"{self.group}/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        query = {"fieldValidation": "Strict" if strict else "Ignore"} | ({"dryRun": "All"} if dry else {})
        return self.call("POST", self.path(kind), query, body)

    def refusal(self, kind: str, spec: Any, *, name: str = "churn", strict: bool = False) -> str:
        """Why the server refuses the object."""
        with pytest.raises(ApiError) as refused:
            self.post(kind, spec, name=name, strict=strict)
        return refused.value.message

    def path(self, kind: str, name: str = "") -> str:
        plural = DEFINITIONS[kind]["spec"]["names"]["plural"]
        return f"/apis/{self.group}/v1alpha1/namespaces/{self.namespace}/{plural}{'/' if name else ''}{name}"

    def call(self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str = "") -> Any:
        async def ask() -> Any:
            async with connected(self.kubeconfig) as api:
                return await api.call(method, path, query, body, content_type or "application/json")

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def server(testbed: dict[str, str], kubectl: Kubectl, namespace: str) -> Iterator[Server]:
    """The CRDs of this tree, installed under a group of their own."""
    group = f"t-{secrets.token_hex(3)}.{GROUP}"
    copies = [yaml.safe_load(text.replace(GROUP, group)) for text in crds.files().values()]
    names = [crd["metadata"]["name"] for crd in copies]
    for crd in copies:  # kubectl remembers short names for minutes, and would take these for the real ones
        for ambiguous in ("shortNames", "categories"):
            crd["spec"]["names"].pop(ambiguous)
    try:
        kubectl.apply(*copies)
        kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))
        found = Server(testbed["KUBECONFIG"], group, namespace)
        wait_for(lambda: kubectl("get", names[0], "-n", namespace) or True, 30, "the CRDs are served")
        yield found
    finally:
        kubectl("delete", "crd", *names, "--wait=false", "--ignore-not-found")


Place = tuple[str | int, ...]


def places(spec: Any, path: str) -> Iterator[Place]:
    """Where the paths of a schema, such as `model.env[].name` or `resources.limits{}`, are found in a spec."""
    yield from _places(spec, path.replace("[]", ".[]").replace("{}", ".{}").split("."))


def _places(spec: Any, parts: list[str]) -> Iterator[Place]:
    if not parts:
        yield ()
        return
    first, *rest = parts
    keys = range(len(spec)) if first == "[]" else list(spec) if first == "{}" else [first] * (first in spec)
    for key in keys:
        for inner in _places(spec[key], rest):
            yield (key, *inner)


def at(spec: Any, place: Place) -> Any:
    for key in place:
        spec = spec[key]
    return spec


def put(spec: Any, place: Place, value: Any) -> Any:
    """The spec with another value at a place; `REMOVED` takes the field out."""
    out = copy.deepcopy(spec)
    node = at(out, place[:-1])
    if value is REMOVED:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return out


def shown(place: Place) -> str:
    """A place as the API server writes it."""
    return "spec" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)


REMOVED = object()


# --- the CRDs themselves ---


def test_the_server_accepts_the_crds_without_a_complaint(server: Server, kubectl: Kubectl) -> None:
    for crd in crds.definitions():
        found = kubectl.json("get", "crd", crd["metadata"]["name"].replace(GROUP, server.group))
        conditions = {c["type"]: (c["status"], c.get("message")) for c in found["status"]["conditions"]}
        assert conditions["Established"][0] == conditions["NamesAccepted"][0] == "True"
        assert "NonStructuralSchema" not in conditions, conditions
        version = found["spec"]["versions"][0]
        assert version["schema"]["openAPIV3Schema"] == crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_clusters_own_crds_are_those_of_this_tree(kubectl: Kubectl) -> None:
    for crd in crds.definitions():
        found = kubectl.json("get", "crd", crd["metadata"]["name"])["spec"]["versions"]
        assert found == crd["spec"]["versions"], "the cluster has CRDs of another tree; run: make deploy"


def test_short_names_and_category(kubectl: Kubectl) -> None:
    told = kubectl("api-resources", f"--api-group={GROUP}", "--categories=tidegate", "--no-headers")
    found = {words[0]: words[1] for line in told.splitlines() if (words := line.split())}
    assert found == {"modeldeployments": "mdep", "modelversions": "mver"}
    for short in found.values():
        kubectl("get", short, "--all-namespaces")


# --- what is accepted ---

GOOD = {
    "a model's files": {"model": FILES},
    "an image": {"model": IMAGE},
    "an image on KServe": {"backend": "KServe", "model": IMAGE},
    "every field, files": FULL_FILES,
    "every field, image": FULL_IMAGE,
    "a transformer before an image": {"backend": "KServe", "model": IMAGE | {"transformer": {"image": "t"}}},
    "an accelerator with defaults": {"model": IMAGE, "accelerator": {}},
    "another maker's accelerator": {"model": IMAGE, "accelerator": {"resource": "amd.com/gpu", "count": 8}},
    "a MIG slice of media kind": {"model": IMAGE, "accelerator": {"mig": "1g.10gb.me"}},
    "quantities as numbers": {"model": IMAGE, "resources": {"limits": {"cpu": 2, "memory": 1073741824}}},
    "BlueGreen with a preview": {
        "model": IMAGE,
        "rollout": {"strategy": "BlueGreen", "steps": [{"weight": 0, "pause": {}}, {"weight": 100}]},
    },
    "BlueGreen without steps": {"model": IMAGE, "rollout": {"strategy": "BlueGreen", "steps": []}},
    "Immediate": {"model": IMAGE, "rollout": {"strategy": "Immediate", "steps": []}},
    "no guardrails, but steps": {"model": IMAGE, "rollout": {"guardrails": [], "steps": [{"weight": 50}]}},
    "guardrails with defaults": {
        "model": IMAGE,
        "rollout": {"guardrails": [{"name": "e", "errors": {}}, {"name": "l", "latency": {}}]},
    },
    "an absolute limit": {
        "model": IMAGE,
        "rollout": {"guardrails": [{"name": "slo", "errors": {"maxRatio": 0, "maxIncrease": "100%"}}]},
    },
    "equal weights": {"model": IMAGE, "rollout": {"steps": [{"weight": 10}, {"weight": 10}, {"pause": {}}]}},
    "durations of several parts": {"model": IMAGE, "timeout": "1h30m", "scaling": {"window": "1m30s", "idle": "500ms"}},
    "the longest timeout": {"model": IMAGE, "timeout": "24h"},
    "an empty scaling": {"model": IMAGE, "scaling": {}},
    "an A/B test": {
        "model": IMAGE,
        "challengers": [{"name": "deep", "model": FILES}, {"name": "wide", "model": IMAGE, "weight": 98}],
        "rollout": {"strategy": "ABTest"},
    },
    "a bandit on errors": {
        "model": IMAGE,
        "challengers": [{"name": f"c{n}", "model": FILES} for n in range(5)],
        "rollout": {"strategy": "Bandit", "goal": "errors"},
    },
    "an A/B test on latency": {
        "model": IMAGE,
        "challengers": [{"name": "deep", "model": FILES}],
        "rollout": {
            "strategy": "ABTest",
            "goal": "l",
            "guardrails": [{"name": "e", "errors": {}}, {"name": "l", "latency": {"slowerThan": "100ms"}}],
        },
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_accepted(server: Server, name: str) -> None:
    found = server.post("ModelDeployment", GOOD[name], strict=True)
    assert ModelDeploymentSpec.model_validate(found["spec"]) == ModelDeploymentSpec.model_validate(GOOD[name])


@pytest.mark.parametrize("spec", [FULL_FILES, FULL_IMAGE], ids=["files", "image"])
def test_what_was_written_is_kept(server: Server, spec: dict[str, Any]) -> None:
    """No field of the types is lost on its way through the schema."""
    found = server.post("ModelDeployment", spec)["spec"]
    assert found == spec | {"volumes": [{"readOnly": True} | volume for volume in spec["volumes"]]}


def test_the_examples_of_the_docs_are_accepted(server: Server) -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        server.post("ModelDeployment", example["spec"], name=example["metadata"]["name"], strict=True)


@pytest.mark.parametrize("name", ["a", "a1", "churn-2", "x" * 36])
def test_accepted_names(server: Server, name: str) -> None:
    assert server.post("ModelDeployment", {"model": IMAGE}, name=name)["metadata"]["name"] == name


def test_every_field_of_the_types_is_in_the_two_full_examples() -> None:
    """What follows takes fields out of them and puts bad values in."""
    every = {path.removeprefix("spec.") for path, _ in nodes(whole("ModelDeployment")["properties"]["spec"], "spec")}
    assert {
        path for path in every - {"spec"} if not any(places(spec, path) for spec in (FULL_FILES, FULL_IMAGE))
    } == set()


def test_defaults_are_filled_in_as_documented(server: Server) -> None:
    found = server.post("ModelDeployment", {"model": IMAGE})["spec"]
    assert found == {"model": IMAGE | {"container": IMAGE["container"] | {"port": 8080}}, **DEFAULTS}


def test_a_part_of_scaling_or_rollout_is_filled_up(server: Server) -> None:
    given = {"model": FILES, "scaling": {"min": 2}, "rollout": {"paused": True}, "accelerator": {"mig": "1g.10gb"}}
    found = server.post("ModelDeployment", given)["spec"]
    assert (found["scaling"]["min"], found["scaling"]["max"]) == (2, 5)
    assert (found["rollout"]["paused"], found["rollout"]["keepVersions"]) == (True, 3)
    assert found["accelerator"] == {"mig": "1g.10gb", "resource": "nvidia.com/gpu", "count": 1}


def test_defaulting_makes_no_new_version(server: Server) -> None:
    for spec in GOOD.values():
        found = server.post("ModelDeployment", spec)["spec"]
        written, kept = (ModelDeploymentSpec.model_validate(part).template for part in (spec, found))
        assert versions.digest(kept) == versions.digest(written)


def test_status_is_not_filled_in(server: Server) -> None:
    assert "status" not in server.post("ModelDeployment", {"model": IMAGE})
    assert "status" not in server.post("ModelVersion", VERSION)


def test_fields_that_are_not_known_are_dropped_or_told(server: Server) -> None:
    """An object of a newer release still works; whoever asks for strictness, as kubectl does, hears of typos."""
    newer = {"model": FILES | {"alsoNew": 1}, "fromTheFuture": {"a": 1}}
    found = server.post("ModelDeployment", newer)["spec"]
    assert "fromTheFuture" not in found
    assert found["model"] == FILES
    told = server.refusal("ModelDeployment", newer, strict=True)
    assert 'unknown field "spec.fromTheFuture"' in told
    assert 'unknown field "spec.model.alsoNew"' in told


# --- what is refused: rules ---

ACCELERATED = {"resource": "amd.com/gpu"}


def volume(**source: Any) -> dict[str, Any]:
    return {"model": IMAGE, "volumes": [{"name": "v", "mountPath": "/v"} | source]}


def variable(**entry: Any) -> dict[str, Any]:
    return {"model": IMAGE | {"env": [{"name": "A"} | entry]}}


def rolled(**rollout: Any) -> dict[str, Any]:
    return {"model": IMAGE, "rollout": rollout}


def contested(
    *challengers: dict[str, Any], strategy: str = "ABTest", model: Any = IMAGE, **more: Any
) -> dict[str, Any]:
    return {"model": model, "challengers": list(challengers), "rollout": {"strategy": strategy}} | more


DEEP = {"name": "deep", "model": FILES}


def guarded(*guardrails: dict[str, Any]) -> dict[str, Any]:
    return rolled(guardrails=list(guardrails))


RULES: dict[str, list[dict[str, Any]]] = {
    "give exactly one of uri (a model's files) and container (an image)": [
        {"model": FILES | IMAGE},
        {"model": {"version": "v1"}},
    ],
    "a model with a uri needs its format, such as sklearn": [{"model": {"version": "v1", "uri": "s3://m/1"}}],
    "format goes with uri": [{"model": IMAGE | {"format": "sklearn"}}],
    "runtime goes with uri": [{"model": IMAGE | {"runtime": "rt"}}],
    "storage goes with uri": [{"model": IMAGE | {"storage": {"secret": "s"}}}],
    "give value or valueFrom, not both": [
        variable(value="1", valueFrom={"secretKeyRef": {"name": "s", "key": "k"}}),
        {"model": FILES | {"transformer": {"image": "t", "env": [{"name": "A", "value": "", "valueFrom": {}}]}}},
    ],
    "give exactly one of secretKeyRef and configMapKeyRef": [
        variable(valueFrom={}),
        variable(valueFrom={f"{kind}KeyRef": {"name": "s", "key": "k"} for kind in ("secret", "configMap")}),
    ],
    "give exactly one of configMap, secret, persistentVolumeClaim and emptyDir": [
        volume(),
        volume(configMap="c", secret="s"),
        volume(persistentVolumeClaim="p", emptyDir={}),
    ],
    "readOnly: false goes with persistentVolumeClaim": [
        volume(configMap="c", readOnly=False),
        volume(emptyDir={}, readOnly=False),
    ],
    "products, minMemory and mig are known for nvidia.com resources only": [
        {"model": IMAGE, "accelerator": ACCELERATED | {"products": ["MI300X"]}},
        {"model": IMAGE, "accelerator": ACCELERATED | {"minMemory": "40Gi"}},
    ],
    "mig goes with the resource nvidia.com/gpu": [
        {"model": IMAGE, "accelerator": {"resource": "nvidia.com/mig-1g.10gb", "mig": "1g.10gb"}}
    ],
    "the Knative backend runs images: give model.container": [{"backend": "Knative", "model": FILES}],
    "a transformer needs the KServe backend: set backend: KServe": [
        {"model": IMAGE | {"transformer": {"image": "t"}}},
        {"backend": "Knative", "model": IMAGE | {"transformer": {"image": "t"}}},
    ],
    "timeout: at least 1s": [{"model": IMAGE, "timeout": "0s"}, {"model": IMAGE, "timeout": "999ms"}],
    "timeout: at most 24h": [{"model": IMAGE, "timeout": "24h1ms"}],
    "scaling.min must not be above scaling.max": [
        {"model": IMAGE, "scaling": {"min": 4, "max": 3}},
        {"model": IMAGE, "scaling": {"min": 6}},
    ],
    "scaling.initial must not be above scaling.max": [{"model": IMAGE, "scaling": {"initial": 6}}],
    "scaling.window: 6s to 1h": [
        {"model": IMAGE, "scaling": {"window": "5s999ms"}},
        {"model": IMAGE, "scaling": {"window": "1h1s"}},
    ],
    "scaling.idle: 0s to 1h": [{"model": IMAGE, "scaling": {"idle": "61m"}}],
    "the weights of rollout.steps must not fall": [
        rolled(steps=[{"weight": 50}, {"weight": 49}]),
        rolled(steps=[{"weight": 50}, {"pause": {}}, {"weight": 0}]),
    ],
    "pause.for: at most 720h (30 days)": [rolled(steps=[{"weight": 5, "pause": {"for": "720h1s"}}])],
    "strategy Immediate has no steps": [rolled(strategy="Immediate", steps=[{"weight": 100}])],
    "the weights of strategy BlueGreen are 0 and 100": [rolled(strategy="BlueGreen", steps=[{"weight": 50}])],
    "maxIncrease: above 0% and at most 100%. Without any room, no version could be proven healthy": [
        guarded({"name": "e", "errors": {"maxIncrease": "0%"}}),
        guarded({"name": "e", "errors": {"maxIncrease": "100.1%"}}),
        guarded({"name": "e", "errors": {}}, {"name": "l", "latency": {"maxIncrease": "0.00%"}}),
    ],
    "give max or min, or both": [guarded({"name": "q", "query": {"promql": "up"}})],
    "for: at most 24h": [guarded({"name": "q", "query": {"promql": "up", "max": 1, "for": "24h1s"}})],
    "give exactly one of errors, latency, reward and query": [
        guarded({"name": "e"}),
        guarded({"name": "e", "errors": {}, "reward": {}}),
    ],
    "without guardrails nothing but steps can set the pace: give rollout.steps, or leave guardrails out": [
        rolled(guardrails=[]),
        rolled(guardrails=[], steps=[]),
    ],
    "guardrails compare a candidate with part of the traffic: give a step with a weight from 1 to 99, or "
    "guardrails: [] to do without": [
        rolled(steps=[{"weight": 100}]),
        rolled(steps=[{"weight": 0, "pause": {}}], guardrails=[{"name": "e", "errors": {}}]),
    ],
    "guardrails compare with a baseline: it goes with Progressive, ABTest or Bandit, and with guardrails": [
        rolled(baseline=True, strategy="BlueGreen"),
        rolled(baseline=True, guardrails=[], steps=[{"weight": 50}]),
    ],
    "the baseline has as many requests as the candidate: give steps with weights up to 50, and 100": [
        rolled(baseline=True, steps=[{"weight": 51}])
    ],
    "a guardrail on latency needs one on errors beside it: failures can be fast": [
        guarded({"name": "l", "latency": {}})
    ],
    "rollout.deadline: 1m to 720h": [rolled(deadline="59s"), rolled(deadline="720h1s")],
    "rollout.goal: reward, or the name of a guardrail on errors, or on latency with slowerThan": [
        rolled(goal="nonsense"),
        rolled(goal="errors", guardrails=[{"name": "e", "errors": {}}]),
        rolled(goal="l", guardrails=[{"name": "e", "errors": {}}, {"name": "l", "latency": {}}]),
        rolled(goal="r", guardrails=[{"name": "r", "reward": {}}]),
    ],
    "promoteWinner goes with strategy ABTest: a bandit has no end": [
        rolled(promoteWinner=True),
        contested(DEEP, rollout={"strategy": "Bandit", "promoteWinner": True}),
    ],
    "bandit.every: 10s to 24h": [rolled(bandit={"every": "9s"}), rolled(bandit={"every": "24h1s"})],
    "bandit.halfLife: 1m to 720h": [rolled(bandit={"halfLife": "59s"}), rolled(bandit={"halfLife": "720h1s"})],
    "challengers go with rollout.strategy ABTest or Bandit, which need at least one": [
        rolled(strategy="ABTest"),
        contested(strategy="Bandit"),
        contested(DEEP, strategy="Progressive"),
    ],
    "control is what the version of spec.model is called; give the challenger another name": [
        contested(DEEP | {"name": "control"})
    ],
    "the weights of the challengers must leave at least 1% for spec.model and each that has none": [
        contested(DEEP | {"weight": 60}, DEEP | {"name": "wide", "weight": 40}),
        contested(DEEP | {"weight": 99}, DEEP | {"name": "wide"}),
    ],
    "the weights of strategy Bandit follow the goal: leave out those of the challengers": [
        contested(DEEP | {"weight": 10}, strategy="Bandit")
    ],
    "the Knative backend runs images: give every challenger a model.container": [contested(DEEP, backend="Knative")],
    "a challenger's transformer needs the KServe backend: set backend: KServe": [
        contested({"name": "deep", "model": IMAGE | {"transformer": {"image": "t"}}}),
    ],
}


@pytest.mark.parametrize(
    ("message", "spec"), [(message, spec) for message, specs in RULES.items() for spec in specs], ids=str
)
def test_a_rule_refuses_and_says_what_to_do(server: Server, message: str, spec: dict[str, Any]) -> None:
    assert message in server.refusal("ModelDeployment", spec)


@pytest.mark.parametrize("name", ["x" * 37, "2churn", "churn.v2", "0"])
def test_a_name_that_is_no_host_name_is_refused(server: Server, name: str) -> None:
    told = server.refusal("ModelDeployment", {"model": IMAGE}, name=name)
    assert "the name of a ModelDeployment is part of host names" in told
    assert "at most 36 characters" in told


def test_every_rule_has_a_case() -> None:
    every = {
        r["message"] for _, node in nodes(whole("ModelDeployment")) for r in node.get("x-kubernetes-validations", ())
    }
    (of_the_name,) = (r["message"] for r in whole("ModelDeployment")["x-kubernetes-validations"])
    assert RULES.keys() | {of_the_name} == every


# --- what is refused: bounds. A bad value for each bound that the schema has ---


def bad_values(node: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """A value that breaks each bound of a schema, and what the server says of it."""
    if "maxLength" in node:
        filler = "1" if "x-kubernetes-int-or-string" in node else "s" if "mountPath" not in node else "/"
        yield filler * (node["maxLength"] + 1), "Too long: may not be more than"
    if node.get("minLength"):
        yield "", "should be at least 1 chars long"
    if "pattern" in node:
        yield " ", "should match"
    if "enum" in node:
        yield "Nonsense", "Unsupported value"
    if "minimum" in node:
        yield node["minimum"] - 1, "should be greater than or equal to"
    if "maximum" in node:
        yield node["maximum"] + 1, "should be less than or equal to"
    if "maxProperties" in node:
        yield (
            {f"r{n}": "1" for n in range(node["maxProperties"] + 1)},
            f"must have at most {node['maxProperties']} items",
        )
    if node.get("type") in ("integer", "boolean", "array", "object"):
        yield "a word", f"must be of type {node['type']}"
    if node.get("type") == "string":
        yield 7, "must be of type string"
    if "x-kubernetes-int-or-string" in node:
        yield True, "must be of type integer,string"


def bounds(kind: str, *bases: dict[str, Any], leave: str = "nothing") -> Iterator[Any]:
    """Bad spec, place and expected words for every bound of a kind's spec."""
    for whole_path, node in nodes(whole(kind)["properties"]["spec"], "spec"):
        path = whole_path.removeprefix("spec").removeprefix(".")
        if not path or path.startswith(leave):
            continue
        base, place = next((base, place) for base in bases for place in places(base, path))
        where, value = shown(place), at(base, place)
        for bad, words in bad_values(node):
            yield pytest.param(put(base, place, bad), where, words, id=f"{path} {words}")
        if node.get("type") == "array":
            many = [another(value[0], n) for n in range(node["maxItems"] + 1)]
            words = f"must have at most {node['maxItems']} items"
            yield pytest.param(put(base, place, many), where, words, id=f"{path} too many")
        if node.get("x-kubernetes-list-type") == "map":
            twice = [value[0], value[0]]
            yield pytest.param(put(base, place, twice), where, "Duplicate value", id=f"{path} twice")
        for required in node.get("required", ()):
            without = put(base, (*place, required), REMOVED)
            yield pytest.param(without, f"{where}.{required}", "Required value", id=f"{path} without {required}")


def another(item: Any, n: int) -> Any:
    """An item of a list once more, under another name if it has one."""
    return {**item, "name": f"{item['name']}{n}"} if isinstance(item, dict) and "name" in item else item


BOUNDS = list(bounds("ModelDeployment", FULL_FILES, FULL_IMAGE))
VERSION_BOUNDS = list(bounds("ModelVersion", VERSION, leave="template."))


def test_there_are_bounds_for_every_field() -> None:
    assert len(BOUNDS) > 200
    assert len(VERSION_BOUNDS) > 20


@pytest.mark.parametrize(("spec", "where", "words"), BOUNDS)
def test_a_bound_refuses(server: Server, spec: dict[str, Any], where: str, words: str) -> None:
    told = server.refusal("ModelDeployment", spec)
    assert where in told
    assert words in told


@pytest.mark.parametrize(("spec", "where", "words"), VERSION_BOUNDS)
def test_a_bound_of_a_record_refuses(server: Server, spec: dict[str, Any], where: str, words: str) -> None:
    told = server.refusal("ModelVersion", spec)
    assert where in told
    assert words in told


# --- records never change ---


def test_a_records_spec_never_changes_and_its_status_does(server: Server) -> None:
    server.post("ModelVersion", VERSION, name="churn-v1", dry=False)
    path = server.path("ModelVersion", "churn-v1")
    merge = "application/merge-patch+json"
    for change in ({"tag": "v2"}, {"template": {"model": {"uri": "s3://other"}}}, {"runtime": None}):
        with pytest.raises(ApiError, match="a ModelVersion never changes; change the ModelDeployment"):
            server.call("PATCH", path, {}, {"spec": change}, merge)
    status = {"status": {"role": "Stable", "revision": "churn-v1-00001"}}
    found = server.call("PATCH", f"{path}/status", {}, status, merge)
    assert found["status"]["role"] == "Stable"
    assert ModelVersionSpec.model_validate(found["spec"]) == ModelVersionSpec.model_validate(VERSION)


# --- what people see ---


def test_kubectl_get_shows_what_matters(server: Server, kubectl: Kubectl) -> None:
    server.post("ModelDeployment", {"model": IMAGE}, name="shown", dry=False)
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "Undone",
        "message": "so",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {
        "stable": "v1-11111111",
        "candidate": "v2-22222222",
        "weight": 20,
        "verdict": "Healthy",
        "url": "http://shown.example.test",
        "conditions": [condition],
    }
    server.call(
        "PATCH",
        f"{server.path('ModelDeployment', 'shown')}/status",
        {},
        {"status": status},
        "application/merge-patch+json",
    )
    plural = f"modeldeployments.{server.group}"
    header, row = kubectl("get", plural, "shown", "-n", server.namespace).splitlines()
    assert header.split() == ["NAME", "READY", "STABLE", "CANDIDATE", "WEIGHT", "VERDICT", "URL", "AGE"]
    words = ["shown", "False", "v1-11111111", "v2-22222222", "20", "Healthy", "http://shown.example.test"]
    assert row.split()[:-1] == words
    wide = kubectl("get", plural, "shown", "-n", server.namespace, "-o", "wide")
    assert "REASON" in wide
    assert "Undone" in wide


def test_kubectl_get_of_records_shows_what_matters(server: Server, kubectl: Kubectl) -> None:
    server.post("ModelVersion", VERSION, name="shown", dry=False)
    body = {"status": {"role": "Kept"}}
    path = f"{server.path('ModelVersion', 'shown')}/status"
    server.call("PATCH", path, {}, body, "application/merge-patch+json")
    header, row = kubectl("get", f"modelversions.{server.group}", "shown", "-n", server.namespace).splitlines()
    assert header.split() == ["NAME", "DEPLOYMENT", "VERSION", "ROLE", "READY", "AGE"]
    assert row.split()[:4] == ["shown", "churn", "v1", "Kept"]


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_server_teaches_every_field(server: Server, kubectl: Kubectl, kind: str) -> None:
    """What `kubectl explain` shows comes from here."""
    published = json.loads(kubectl("get", "--raw", f"/openapi/v3/apis/{server.group}/v1alpha1"))
    (schema,) = (
        node
        for node in published["components"]["schemas"].values()
        if {"group": server.group, "kind": kind, "version": "v1alpha1"}
        in node.get("x-kubernetes-group-version-kind", ())
    )
    for part in ("spec", "status"):
        told = {path: node.get("description") for path, node in nodes(schema["properties"][part], part)}
        assert [path for path, words in told.items() if not words and not path.endswith(("[]", "{}"))] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("modeldeployments", "A model served under one name and URL"),
        ("modeldeployments.spec.scaling.target", "Value of the metric that one replica should carry"),
        ("modeldeployments.spec.rollout.steps.pause.for", "How long. Without it, until"),
        ("modelversions.spec.madeBy", "Field manager that wrote the template"),
    ],
)
def test_kubectl_explain(server: Server, kubectl: Kubectl, path: str, words: str) -> None:
    told = kubectl("explain", path, f"--api-version={server.group}/v1alpha1")
    assert words in " ".join(told.split())


def test_kubectl_tells_the_rule_that_an_object_breaks(server: Server, kubectl: Kubectl) -> None:
    body = {
        "apiVersion": f"{server.group}/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "churn"},
        "spec": {"model": {"version": "v1"}},
    }
    with pytest.raises(KubectlError, match="give exactly one of uri"):
        kubectl.apply(body, namespace=server.namespace)
