"""Knative, Kourier, KServe, Prometheus and the model store, applied to the cluster layer by layer."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from . import debian, files, gobuild, manifests
from .cluster import VOLUME_ROOT, VOLUMES, Cluster
from .images import NAMES, Images
from .settings import Settings
from .steps import Log, Problem, Step
from .versions import key, pinned

NAMESPACES = ("knative-serving", "kourier-system", "kserve", manifests.NAMESPACE)
IN_CLUSTER = tuple(name for name in NAMES if name not in ("node", "python-base"))
MARK = "tidegate.dev/testbed-"  # annotations of our namespace: which content of each layer is applied

# Each is admitted, or refused, by a webhook that must answer before the cluster is of use; none is created.
PROBES = """\
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: probe, namespace: default}
spec: {template: {spec: {containers: [{image: dev.local/probe:1}]}}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: probe, namespace: default}
spec: {predictor: {containers: [{name: kserve-container, image: "dev.local/probe:1"}]}}
---
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: probe}
spec: {containers: [{name: kserve-container, image: "dev.local/probe:1"}]}
"""


def account(settings: Settings) -> manifests.S3Account:
    """The model store's credentials, made once for each cluster."""
    path = settings.cluster_dir / "s3.json"
    if not path.exists():
        made = {"access_key": f"testbed{secrets.token_hex(6)}", "secret_key": secrets.token_hex(20)}
        files.write(path, json.dumps(made), 0o600)
    return manifests.S3Account(**json.loads(path.read_text()))


def certificate(log: Log, settings: Settings) -> manifests.Certificate:
    """An authority of the cluster's own, and a certificate by it for KServe's webhooks."""
    folder = settings.cluster_dir / "tls"
    if not folder.is_dir():
        if shutil.which("openssl") is None:
            debian.install(log, settings.cache, ["openssl"])
        with files.made_whole(folder) as out:
            out.mkdir(mode=0o700)
            name = manifests.KSERVE_WEBHOOK
            (out / "san").write_text(f"subjectAltName=DNS:{name},DNS:{name}.cluster.local\n")
            log.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650"),
                    *("-subj", "/CN=tidegate-testbed", "-keyout", "ca.key", "-out", "ca.crt"),
                ],
                cwd=out,
            )
            log.run(
                [
                    *("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kserve-webhook"),
                    *("-keyout", "tls.key", "-out", "tls.csr"),
                ],
                cwd=out,
            )
            log.run(
                [
                    *(
                        "openssl",
                        "x509",
                        "-req",
                        "-in",
                        "tls.csr",
                        "-CA",
                        "ca.crt",
                        "-CAkey",
                        "ca.key",
                        "-CAcreateserial",
                    ),
                    *("-days", "3650", "-extfile", "san", "-out", "tls.crt"),
                ],
                cwd=out,
            )
    read = [(folder / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key")]
    return manifests.Certificate(*read)


def sources(log: Log) -> manifests.Sources:
    serving = gobuild.module_dir(log, gobuild.SERVING)
    required = (serving / "go.mod").read_text()

    def beside(module: str) -> Path:
        found = re.search(rf"^\s*{re.escape(module)} (v\S+)", required, re.M)
        if not found:
            raise Problem(f"{gobuild.SERVING} no longer requires {module}")
        return gobuild.module_dir(log, module, found[1])

    return manifests.Sources(
        serving,
        beside("knative.dev/networking"),
        beside("knative.dev/caching"),
        gobuild.module_dir(log, gobuild.KOURIER),
        gobuild.module_dir(log, gobuild.KSERVE),
    )


class Installation:
    def __init__(self, settings: Settings, cluster: Cluster, images: Images) -> None:
        self._settings, self._cluster = settings, cluster
        self._images = {name: images.ensure(name) for name in IN_CLUSTER}
        self._folder = settings.cluster_dir / "manifests"

    @property
    def refs(self) -> list[str]:
        return [ref for ref, _ in self._images.values()]

    def _made_from(self) -> str:
        here = Path(__file__).parent
        recipe = files.digest(here, [Path("manifests.py"), Path("testbed.yaml"), Path("ports.py")])
        login = account(self._settings)
        return key(recipe, self.refs, dict(pinned().modules), [login.access_key, login.secret_key])

    def _rendered(self) -> bool:
        mark = self._folder / "made-from"
        return mark.exists() and mark.read_text() == self._made_from()

    def _render(self, log: Log) -> None:
        refs = {name: ref for name, (ref, _) in self._images.items()}
        shutil.rmtree(self._folder, ignore_errors=True)
        volumes = [f"{VOLUME_ROOT}/{number}" for number in range(VOLUMES)]
        login, tls = account(self._settings), certificate(log, self._settings)
        with files.made_whole(self._folder) as out:
            out.mkdir(mode=0o700)
            for layer, documents in manifests.layers(sources(log), refs.__getitem__, tls, login, volumes).items():
                whole = {"apiVersion": "v1", "kind": "List", "items": documents}
                (out / f"{layer}.json").write_text(json.dumps(whole))
            (out / "made-from").write_text(self._made_from())

    def _applied(self, layer: str) -> bool:
        path = self._folder / f"{layer}.json"
        if not self._rendered() or not self._cluster.ready():
            return False
        namespace = self._cluster.get("namespace", manifests.NAMESPACE)
        marks = (namespace or {}).get("metadata", {}).get("annotations", {})
        return bool(marks.get(MARK + layer) == files.digest(self._folder, [Path(path.name)]))

    def _apply(self, log: Log, layer: str) -> None:
        if self._applied(layer):  # what was rendered anew has come out the same
            log.say(f"{layer} is applied already")
            return
        path = self._folder / f"{layer}.json"
        kubectl = ["kubectl", "--request-timeout=60s"]
        log.run(
            [*kubectl, "apply", "--server-side", "--force-conflicts", "--field-manager=tidegate-testbed", "-f", path],
            env=self._cluster.env,
        )
        if layer == "definitions":
            log.run(
                [*kubectl, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"],
                env=self._cluster.env,
            )
        mark = f"{MARK}{layer}={files.digest(self._folder, [Path(path.name)])}"
        log.run([*kubectl, "annotate", "--overwrite", "namespace", manifests.NAMESPACE, mark], env=self._cluster.env)

    def _available(self) -> bool:
        found = self._cluster.get("deployments", "--all-namespaces") or {"items": []}
        states = {
            (item["metadata"]["namespace"], item["metadata"]["name"]): any(
                condition["type"] == "Available" and condition["status"] == "True"
                for condition in item.get("status", {}).get("conditions", [])
            )
            for item in found["items"]
            if item["metadata"]["namespace"] in NAMESPACES
        }
        return {namespace for namespace, _ in states} == set(NAMESPACES) and all(states.values())

    def _wait_available(self, log: Log) -> None:
        for namespace in NAMESPACES:
            log.run(
                [
                    "kubectl",
                    "wait",
                    "-n",
                    namespace,
                    "--for=condition=Available",
                    "deployment",
                    "--all",
                    "--timeout=240s",
                ],
                env=self._cluster.env,
            )

    def _refused(self) -> str:
        """Why the webhooks do not admit what users and charts write; empty where they do."""
        asked = self._cluster.kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", stdin=PROBES, timeout=60)
        return asked.stderr.strip() if asked.returncode else ""

    def _wait_for_webhooks(self, log: Log) -> None:
        """Until they have their certificates and admit what users write.

        The objects alone do not tell: after a restart of the node they are applied, and their pods called available,
        for as long as the kubelet has not looked. The pods that the webhooks' answers prove to be new are waited for
        once more.
        """
        deadline = time.monotonic() + 120
        while reason := self._refused():
            log.say(reason)
            if time.monotonic() > deadline:
                raise Problem(f"the webhooks do not admit what is right: {reason}")
            time.sleep(1)
        self._wait_available(log)

    def steps(self, created: Step) -> list[Step]:
        """The steps that install everything, the last of which must be true before anything else is installed."""
        render = Step("manifests", self._render, done=self._rendered, seconds=10)
        loaded = Step(
            "images in the node",
            lambda log: self._cluster.load(log, self.refs),
            done=lambda: self._cluster.ready() and self._cluster.has_images(self.refs),
            needs=[created, *(step for _, step in self._images.values())],
            seconds=40,
        )

        def layer(name: str, title: str, needs: Sequence[Step], seconds: float) -> Step:
            return Step(
                title,
                lambda log: self._apply(log, name),
                done=lambda: self._applied(name),
                needs=[render, created, *needs],
                seconds=seconds,
                advice="`make dump` collects what the cluster says; `make up` tries again",
            )

        definitions = layer("definitions", "Knative's and KServe's definitions", [], 5)
        parts = [
            layer("core", "Knative Serving and Kourier", [definitions, loaded], 5),
            layer("kserve", "KServe", [definitions, loaded], 3),
            layer("fixtures", "Prometheus and the model store", [definitions, loaded], 2),
        ]
        available = Step(
            "everything available",
            self._wait_available,
            done=lambda: all(step.done() for step in parts) and self._available(),
            needs=[loaded, *parts],
            seconds=40,
            advice="`make dump` collects what the cluster says",
        )
        webhooks = layer("webhooks", "webhooks", [available], 2)
        # Asked on every run and hidden by nothing, since a restart of the node makes it false again.
        admitted = Step(
            "webhooks answer",
            self._wait_for_webhooks,
            done=lambda: webhooks.done() and not self._refused(),
            needs=[webhooks],
            seconds=5,
            advice="`make dump` collects what the cluster says; `make up` tries again",
        )
        late = layer("late", "KServe's storage initializer", [admitted], 5)
        return [loaded, *parts, available, late, admitted]
