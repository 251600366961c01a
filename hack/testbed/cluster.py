"""The kind cluster: created, brought back after a stop of the daemon, deleted; and images loaded into its node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from . import files, ports
from .docker import Docker
from .settings import Settings
from .steps import Log, Problem, Step

VOLUMES = 8  # directories of the node that back the default storage class, where nothing provisions them
VOLUME_ROOT = "/var/local/tidegate"


def kind_config(name: str, image: str, mapped: Mapping[str, int]) -> dict[str, Any]:
    kubelet = {"kind": "KubeletConfiguration", "failCgroupV1": False, "maxPods": 200}
    # Durability is for clusters that outlive their disk: here an fsync only slows etcd down. kind applies the patch
    # whose version is that of kubeadm's configuration.
    option: dict[str, Any] = {"kubeadm.k8s.io/v1beta3": {"unsafe-no-fsync": "true"}}
    option["kubeadm.k8s.io/v1beta4"] = [{"name": "unsafe-no-fsync", "value": "true"}]
    etcd = [
        {"apiVersion": version, "kind": "ClusterConfiguration", "etcd": {"local": {"extraArgs": arguments}}}
        for version, arguments in option.items()
    ]
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": name,
        "nodes": [
            {
                "role": "control-plane",
                "image": image,
                "extraPortMappings": [
                    {"containerPort": ports.NODE_PORTS[what], "hostPort": port, "listenAddress": ports.HOST}
                    for what, port in mapped.items()
                ],
            }
        ],
        "kubeadmConfigPatches": [yaml.safe_dump(patch) for patch in (kubelet, *etcd)],
    }


class Cluster:
    def __init__(self, settings: Settings, docker: Docker) -> None:
        self.settings, self._docker = settings, docker
        self.name = settings.cluster
        self._network = f"kind-{settings.cluster}"

    @property
    def env(self) -> dict[str, str]:
        env = self._docker.env
        env["PATH"] = f"{self.settings.bin}{os.pathsep}{env['PATH']}"
        env["KUBECONFIG"] = str(self.settings.kubeconfig)
        env["KIND_EXPERIMENTAL_DOCKER_NETWORK"] = self._network
        return env

    def kubectl(self, *words: str, stdin: str = "", timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """What came of the command; one that had no answer in time ends with status 124."""
        try:
            return subprocess.run(
                ["kubectl", *words],
                env=self.env,
                capture_output=True,
                text=True,
                timeout=timeout,
                input=stdin,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 124, "", f"no answer within {timeout:.0f} s")

    def get(self, *words: str) -> Any:
        """What `kubectl get -o json` gives; None where there is no such thing or no answer."""
        asked = self.kubectl("get", *words, "-o", "json")
        return json.loads(asked.stdout) if asked.returncode == 0 else None

    def exists(self) -> bool:
        return self._docker.state(self.settings.node) is not None

    def answers(self) -> bool:
        return self.settings.kubeconfig.exists() and self.kubectl("get", "--raw", "/readyz", timeout=5).returncode == 0

    def _whole(self) -> bool:
        """Whether the creation came to its end: what an interrupted one leaves is of no use."""
        return (self.settings.cluster_dir / "created").exists()

    def ready(self) -> bool:
        return self._docker.state(self.settings.node) == "running" and self._whole() and self.answers()

    def created(self, image: str, mapped: Mapping[str, int], needs: Iterable[Step]) -> Step:
        def run(log: Log) -> None:
            state = self._docker.state(self.settings.node)
            if state is not None and self._whole():
                if state != "running":
                    log.run(["docker", "start", self.settings.node], env=self.env)
                self._wait_until_it_answers()
                return
            if state is not None:
                log.say("a creation that did not come to its end is removed first")
                self._delete(log)
            ports.check_free(mapped)
            self.settings.cluster_dir.mkdir(parents=True, exist_ok=True)
            if not self._docker.output("network", "ls", "--quiet", "--filter", f"name=^{self._network}$").strip():
                log.run(["docker", "network", "create", self._network], env=self.env)
            config = self.settings.cluster_dir / "kind.yaml"
            files.write(config, yaml.safe_dump(kind_config(self.name, image, mapped)))
            log.run(
                [
                    "kind",
                    "create",
                    "cluster",
                    "--config",
                    config,
                    "--kubeconfig",
                    self.settings.kubeconfig,
                    "--wait",
                    "120s",
                ],
                env=self.env,
            )
            volumes = [f"{VOLUME_ROOT}/{number}" for number in range(VOLUMES)]
            log.run(["docker", "exec", self.settings.node, "install", "-d", "-m", "0777", *volumes], env=self.env)
            ports.record(self.settings, mapped)
            files.write(self.settings.cluster_dir / "created", image + "\n")

        return Step(
            f"cluster {self.name}",
            run,
            done=self.ready,
            needs=list(needs),
            seconds=60,
            advice="try `make down`, then `make up`",
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 120
        while not self.answers():
            if time.monotonic() > deadline:
                raise Problem("the cluster's node runs, but its API server does not answer")
            time.sleep(1)

    def delete(self, say: Callable[[str], None]) -> None:
        log = Log(self.settings.cluster_dir / "delete.log")
        try:
            existed = self.exists()
            self._delete(log)
        finally:
            log.close()
        shutil.rmtree(self.settings.cluster_dir, ignore_errors=True)
        say(f"deleted cluster {self.name}" if existed else f"there is no cluster {self.name}")

    def _delete(self, log: Log) -> None:
        # what `kind delete cluster` does, without the need for kind
        if self.exists():
            log.run(["docker", "rm", "--force", "--volumes", self.settings.node], env=self.env)
        if self._docker.output("network", "ls", "--quiet", "--filter", f"name=^{self._network}$").strip():
            log.run(["docker", "network", "rm", self._network], env=self.env)
        for leftover in ("created", "kubeconfig"):
            (self.settings.cluster_dir / leftover).unlink(missing_ok=True)

    # images

    def _images(self) -> set[str]:
        asked = subprocess.run(
            ["docker", "exec", self.settings.node, "ctr", "-n", "k8s.io", "images", "ls", "-q"],
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        return set(asked.stdout.split())

    def has_images(self, refs: Iterable[str]) -> bool:
        return set(refs) <= self._images()

    def load(self, log: Log, refs: Iterable[str]) -> None:
        """Bring those images into the node that it lacks. A tag names one content, so a tag that is there is enough."""
        missing = sorted(set(refs) - self._images())
        if missing:
            # Not with --digests, as kind does it: that gives each image a second name, which would keep it for ever.
            load = ("ctr", "-n", "k8s.io", "images", "import", "--all-platforms", "--snapshotter=overlayfs", "-")
            log.pipe(["docker", "save", *missing], ["docker", "exec", "-i", self.settings.node, *load], env=self.env)

    def forget(self, log: Log, ref: str) -> None:
        """Remove an image's other tags from the node."""
        repository = ref.rpartition(":")[0] + ":"
        if old := sorted(name for name in self._images() if name.startswith(repository) and name != ref):
            remove = ("ctr", "-n", "k8s.io", "images", "rm", *old)
            log.run(["docker", "exec", self.settings.node, *remove], env=self.env)


def tool_links(settings: Settings, programs: Mapping[str, Path], needs: Iterable[Step]) -> Step:
    """kind, kubectl, helm and the like under one directory, which the `env` command puts on PATH."""

    def linked() -> bool:
        return all(
            (settings.bin / name).exists() and (settings.bin / name).resolve() == path
            for name, path in programs.items()
        )

    def run(log: Log) -> None:
        settings.bin.mkdir(parents=True, exist_ok=True)
        for name, path in programs.items():
            link = settings.bin / name
            link.unlink(missing_ok=True)
            link.symlink_to(path)

    return Step("command-line tools", run, done=linked, needs=list(needs), seconds=0.1)
