"""Models of both kinds, served: from the README's ten lines to scale to zero, and every field in a real pod."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from conftest import FAST
from live import wait_for

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def iris(testbed: dict[str, str]) -> Any:
    """Two versions of a real model in the store: s3://models/iris-e2e/v1 and /v2. Returns the rows and v1's answers."""
    rows, labels = load_iris(return_X_y=True)
    store = boto3.client(
        "s3",
        endpoint_url=testbed["TIDEGATE_S3_ENDPOINT"],
        aws_access_key_id=testbed["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=testbed["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    models = {"v1": LogisticRegression(max_iter=1000), "v2": LogisticRegression(C=0.01, max_iter=1000)}
    for version, model in models.items():
        file = io.BytesIO()
        joblib.dump(model.fit(rows, labels), file)
        store.put_object(Bucket="models", Key=f"iris-e2e/{version}/model.joblib", Body=file.getvalue())
    return rows, models["v1"].predict(rows)


def v2_request(rows: Any) -> str:
    return json.dumps(
        {"inputs": [{"name": "x", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}]}
    )


def test_a_model_from_the_store_is_served_scales_to_zero_and_wakes(model, iris, monkeypatch) -> None:
    """`format: sklearn` picks the chart's runtime; nobody asks, no pod; the first request wakes it."""
    rows, expected = iris
    model.apply(model={"version": "v1", "uri": "s3://models/iris-e2e/v1", "format": "sklearn"}, scaling=FAST)
    model.wait("Ready", "True/Serving")
    record = model.kubectl.json("get", "modelversions.tidegate.dev", "-n", model.namespace)["items"][-1]
    assert record["spec"]["runtime"]["name"].startswith("tidegate-sklearn-")
    monkeypatch.setattr("conftest.BODY", v2_request(rows))
    status, version, body = model.ask()
    assert status == 200, body
    assert version == model.id_of("v1"), "the answer says which version gave it"
    assert json.loads(body)["outputs"][0]["data"] == expected.tolist()
    assert json.loads(body)["model_name"] == model.name, "the model's name is the deployment's, not the version's"

    wait_for(lambda: model.pods().total() == 0, 120, "no pod")
    assert model.condition("Ready") == "True/Serving", "asleep is served"
    began = time.monotonic()
    status, _, body = model.ask()
    assert status == 200, body
    print(f"\ncold start: {time.monotonic() - began:.1f} s, model fetched and loaded")

    rollout = {"guardrails": [], "steps": [{"weight": 50, "pause": {"for": "3s"}}]}
    second = {"version": "v2", "uri": "s3://models/iris-e2e/v2", "format": "sklearn"}
    with model.load() as load:
        model.apply(model=second, scaling=FAST, rollout=rollout)
        model.wait("Ready", "True/Serving", 180)
    assert load.failed == []
    assert len(load.versions) == 2


def test_the_example_of_the_readme_is_served(kubectl, testbed, iris, request) -> None:
    """The first manifest in the README, with nothing changed but the model's place in this store."""
    manifest = re.search(r"```yaml\n(apiVersion: tidegate.*?)```", README.read_text(), re.DOTALL)
    assert manifest, "the README shows a ModelDeployment"
    text = re.sub(r's3://[^"\s,}]+', "s3://models/iris-e2e/v1", manifest[1])
    assert len(text.strip().splitlines()) <= 10
    name = re.search(r"name: ([a-z0-9-]+)", text)[1]  # type: ignore[index]
    namespace = request.getfixturevalue("namespace")
    kubectl("apply", "-n", namespace, "-f", "-", input=text)
    try:
        kubectl(
            "wait", "-n", namespace, f"modeldeployments.tidegate.dev/{name}", "--for=condition=Ready", "--timeout=90s"
        )
        url = f"http://{name}.{namespace}.localhost:{testbed['TIDEGATE_URL_PORT']}/v2/models/{name}"
        got = subprocess.run(["curl", "-sS", "--fail", url], capture_output=True, text=True, timeout=60, check=False)
        assert got.returncode == 0, got.stderr
        assert json.loads(got.stdout)["name"] == name
    finally:
        kubectl("delete", "-n", namespace, "modeldeployments.tidegate.dev", name, "--wait=false")


def pod_of(model) -> Any:
    items = model.kubectl.json("get", "pods", "-n", model.namespace, "-l", f"tidegate.dev/deployment={model.name}")[
        "items"
    ]
    return next(pod for pod in items if not pod["metadata"].get("deletionTimestamp"))


EVERYTHING: dict[str, Any] = {
    "resources": {"requests": {"cpu": "20m", "memory": "48Mi"}, "limits": {"memory": "256Mi"}},
    "serviceAccountName": "runner",
    "imagePullSecrets": [{"name": "pull"}],
    "volumes": [
        {"name": "settings", "mountPath": "/etc/settings", "configMap": "settings"},
        {"name": "token", "mountPath": "/etc/token", "secret": "token"},
        {"name": "scratch", "mountPath": "/scratch", "emptyDir": {"sizeLimit": "10Mi"}},
    ],
    "timeout": "77s",
    "concurrency": 7,
    "scaling": FAST | {"min": 1},
}


@pytest.mark.parametrize("backend", ["Knative", "KServe"])
def test_every_field_reaches_the_pod(model, faulty, backend) -> None:
    """On the real cluster nothing on the way drops a field or refuses it."""
    model.kubectl.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token"}, "stringData": {"b": "2"}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": "pull"},
            "stringData": {".dockerconfigjson": '{"auths": {}}'},
        },
        namespace=model.namespace,
    )
    part = faulty("v1", GREETING="hello") | {"args": ["--anything"]}
    part["env"].append({"name": "B", "valueFrom": {"secretKeyRef": {"name": "token", "key": "b"}}})
    part["container"] |= {"port": 9999}
    model.apply(backend=backend, model=part, **EVERYTHING)
    model.wait("Ready", "True/Serving")
    assert model.ask()[0] == 200
    pod = pod_of(model)
    spec = pod["spec"]
    user = next(c for c in spec["containers"] if c["name"] in ("user-container", "kserve-container"))
    queue = next(c for c in spec["containers"] if c["name"] == "queue-proxy")
    variables = {v["name"]: v.get("value", v.get("valueFrom")) for v in user["env"]}
    assert variables["GREETING"] == "hello"
    assert variables["B"] == {"secretKeyRef": {"name": "token", "key": "b"}}
    assert variables["TIDEGATE_VERSION"] == model.id_of("v1")
    assert variables["PORT"] == "9999"
    assert user["args"] == ["--anything"]
    assert user["resources"] == EVERYTHING["resources"]
    assert spec["serviceAccountName"] == "runner"
    assert {"name": "pull"} in spec["imagePullSecrets"]
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in user["volumeMounts"]}
    assert mounts.items() >= {"/etc/settings": True, "/etc/token": True, "/scratch": False}.items()
    sidecar = {v["name"]: v.get("value") for v in queue["env"]}
    assert sidecar["CONTAINER_CONCURRENCY"] == "7"
    assert sidecar["REVISION_TIMEOUT_SECONDS"] == "77"


def test_a_transformer_stands_before_its_model(model, faulty, iris, testbed) -> None:
    """Requests go to the transformer, which is told where its predictor is and what the model is called."""
    transformer = {
        "image": testbed["TIDEGATE_IMAGE_FAULTY"],
        "env": [{"name": "VERSION", "value": "transformer"}],
        "resources": {"requests": {"cpu": "10m"}},
    }
    part = {"version": "v1", "uri": "s3://models/iris-e2e/v1", "format": "sklearn", "transformer": transformer}
    model.apply(model=part, scaling=FAST | {"min": 1})
    model.wait("Ready", "True/Serving", 180)
    status, _, body = model.ask()
    assert status == 200
    assert "transformer" in body
    assert model.revision_of("v1").endswith("-transformer-00001")
    pods = model.kubectl.json("get", "pods", "-n", model.namespace, "-l", f"tidegate.dev/deployment={model.name}")[
        "items"
    ]
    by_component = {pod["metadata"]["labels"]["component"]: pod for pod in pods}
    assert set(by_component) == {"transformer", "predictor"}, "both are kept warm by scaling.min"
    args = by_component["transformer"]["spec"]["containers"][0]["args"]
    assert args[args.index("--model_name") + 1] == model.name
    assert args[args.index("--predictor_host") + 1].startswith(f"{model.name}-v1-"[:10])


def test_a_secret_of_ones_own_fetches_the_model(model, iris, kubectl, namespace) -> None:
    """storage.secret instead of the service account's: with the wrong keys the version says why it does not start."""
    good = kubectl.json("get", "secret", "s3-models", "-n", namespace)
    kept = {"annotations": good["metadata"].get("annotations", {}), "name": "wrong-keys"}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": kept,
            "stringData": {"AWS_ACCESS_KEY_ID": "no", "AWS_SECRET_ACCESS_KEY": "no"},
        },
        namespace=namespace,
    )
    part = {"version": "v1", "uri": "s3://models/iris-e2e/v1", "format": "sklearn", "storage": {"secret": "wrong-keys"}}
    model.apply(model=part, scaling=FAST)
    model.wait("VersionsReady", "False/VersionFailed", 120)
    told = next(c for c in model.status["conditions"] if c["type"] == "VersionsReady")["message"]
    assert "storage-initializer" in told, told
    part["storage"]["secret"] = "s3-models"
    model.apply(model=part, scaling=FAST)
    model.wait("Ready", "True/Serving")


def test_cluster_local_is_not_reached_through_the_gateways_port(model, faulty) -> None:
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1})
    model.wait("Ready", "True/Serving")
    assert model.ask()[0] == 200
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, visibility="ClusterLocal")
    wait_for(lambda: model.ask()[0] == 404, 60, "the public host is gone")
    wait_for(
        lambda: model.status["url"] == f"http://{model.name}.{model.namespace}.svc.cluster.local", 30, "an inner URL"
    )
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1})
    wait_for(lambda: model.ask()[0] == 200, 60, "the public host is back")
