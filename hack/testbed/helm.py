"""Tidegate itself in the cluster, by its Helm chart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping

from . import files
from .cluster import Cluster
from .own import OwnImages, sources
from .settings import REPO
from .steps import Log, Step
from .versions import key

CHART = REPO / "charts" / "tidegate"
RELEASE, NAMESPACE = "tidegate", "tidegate-system"
NEEDED = ("operator",)  # without these there is nothing to deploy


class Tidegate:
    def __init__(self, cluster: Cluster, own: OwnImages, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self.images: dict[str, tuple[str, Step]] = {}
        found = {name: source for name, source in sources().items() if source.exists}
        for name, source in found.items():
            self.images[name] = own.ensure(source)
        self._absent = [str(CHART.relative_to(REPO))] if not (CHART / "Chart.yaml").is_file() else []
        self._absent += [f"{name}'s Dockerfile" for name in NEEDED if name not in found]
        if self._absent:
            say(f"Tidegate itself is not deployed yet: {' and '.join(self._absent)} not found")

    @property
    def refs(self) -> list[str]:
        return [ref for ref, _ in self.images.values()]

    def _values(self) -> dict[str, str]:
        repository, _, tag = self.images["operator"][0].rpartition(":")
        values = {"image.repository": repository, "image.tag": tag}
        if "sklearn" in self.images:
            values["modelServers.sklearn.image"] = self.images["sklearn"][0]
        return values

    def _content(self) -> str:
        return key(files.digest(CHART, files.tree(CHART)), self._values())

    def _deployed(self) -> bool:
        asked = subprocess.run(
            ["helm", "status", RELEASE, "--namespace", NAMESPACE, "--output", "json"],
            env=self._cluster.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if asked.returncode:
            return False
        info: Mapping[str, str] = json.loads(asked.stdout)["info"]
        return info["status"] == "deployed" and info.get("description") == self._content()

    def _running(self) -> bool:
        found = self._cluster.get("deployments", "-n", NAMESPACE) or {"items": []}
        return all(
            item.get("status", {}).get("availableReplicas", 0) >= item["spec"].get("replicas", 1)
            and item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
            for item in found["items"]
        )

    def _deploy(self, log: Log) -> None:
        env = self._cluster.env
        definitions = CHART / "crds"
        if definitions.is_dir():  # Helm installs these once and never again
            apply = ["kubectl", "apply", "--server-side", "--force-conflicts", "--field-manager=tidegate-testbed"]
            log.run([*apply, "-f", definitions], env=env)
        settings = [word for name, value in self._values().items() for word in ("--set-string", f"{name}={value}")]
        log.run(
            [
                *("helm", "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"),
                *("--description", self._content(), "--wait", "--timeout", "180s", *settings),
            ],
            env=env,
        )

    def steps(self, created: Step, installed: Step) -> list[Step]:
        loaded = Step(
            "Tidegate's images in the node",
            lambda log: self._cluster.load(log, self.refs),
            done=lambda: self._cluster.ready() and self._cluster.has_images(self.refs),
            needs=[created, *(step for _, step in self.images.values())],
            seconds=10,
        )
        if self._absent:
            return [loaded] if self.images else []
        return [
            loaded,
            Step(
                "Tidegate",
                self._deploy,
                done=lambda: self._cluster.ready() and self._deployed() and self._running(),
                needs=[loaded, installed],
                seconds=15,
                advice=f"kubectl -n {NAMESPACE} get pods; kubectl -n {NAMESPACE} logs deploy/{RELEASE}",
            ),
        ]
