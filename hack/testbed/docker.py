"""The Docker daemon: the one that answers, or one of our own.

Our own keeps its images in the cache, so that they outlive it, and its run-time state under /run, where the paths of
its sockets are short. It belongs to no terminal: an interrupt of the caller does not reach it, and `make down` ends it.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from . import debian, files, runc_caps
from .settings import Settings
from .steps import Log, Problem, Step
from .versions import key

# apparmor where the kernel has it, and cgroupfs-mount where nothing else mounts them
PACKAGES = ("docker.io", "containerd", "runc", "iptables", "apparmor", "cgroupfs-mount")


JUMPS = (  # what a daemon adds to the chains of the system, and then the chains of its own
    ("filter", "FORWARD", "-j DOCKER-USER"),
    ("filter", "FORWARD", "-j DOCKER-ISOLATION-STAGE-1"),
    ("nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER"),
    ("nat", "OUTPUT", "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER"),
)
CHAINS = {
    "filter": ("DOCKER", "DOCKER-USER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2"),
    "nat": ("DOCKER",),
}


KEPT = 4  # images of each name: two clusters, each of an older and a newer state


def superseded(refs: Iterable[str]) -> list[str]:
    """Of images listed newest first, those that have enough newer ones of their name."""
    seen: dict[str, int] = {}
    found = []
    for ref in refs:
        name = ref.rpartition(":")[0]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > KEPT:
            found.append(ref)
    return found


def _others() -> bool:
    """Whether another Docker daemon runs: the firewall's chains have the same names for all."""
    names = (Path(path, "comm") for path in glob.glob("/proc/[0-9]*"))
    return any(name.exists() and name.read_text().strip() == "dockerd" for name in names)


def _clear_firewall() -> None:
    """Take out the empty chains that a daemon leaves behind. What isn't there need not be removed."""

    def iptables(table: str, *words: str) -> None:
        subprocess.run(["iptables", "-w", "-t", table, *words], capture_output=True, check=False)

    for table, chain, rule in JUMPS:
        iptables(table, "-D", chain, *rule.split())
    for action in ("-F", "-X"):
        for table, chains in CHAINS.items():
            for chain in chains:
                iptables(table, action, chain)


class Docker:
    def __init__(self, settings: Settings) -> None:
        self._cache = settings.cache
        self._data = settings.cache / "docker"
        self._run = Path("/run") / f"tidegate-{key(str(settings.cache))[:8]}"
        self.own_host = f"unix://{self._run}/docker.sock"
        self.own = False
        self._refs: set[str] = set()
        self._listed = 0.0

    @property
    def env(self) -> dict[str, str]:
        # the builder without BuildKit: it needs no plug-in, and every daemon since 2013 has it
        env = {**os.environ, "DOCKER_BUILDKIT": "0"}
        if self.own:
            env["DOCKER_HOST"] = self.own_host
        return env

    def _answers(self, host: str | None) -> bool:
        env = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
        try:
            asked = subprocess.run(
                ["docker", "info", "--format", "{{.ServerVersion}}"], env=env, capture_output=True, timeout=10
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return False
        return asked.returncode == 0

    def found(self) -> bool:
        """Look for a daemon that answers: the caller's first, then our own."""
        if os.environ.get("DOCKER_HOST") != self.own_host and self._answers(None):
            self.own = False
            return True
        if (self._run / "docker.sock").exists() and self._answers(self.own_host):
            self.own = True
            return True
        return False

    def ready(self) -> Step:
        return Step("Docker daemon", self._make_ready, done=self.found, seconds=30)

    def _make_ready(self, log: Log) -> None:
        with files.locked(self._cache / "locks" / "docker.lock"):
            if self.found():
                return
            asked_for = os.environ.get("DOCKER_HOST")
            if asked_for and asked_for != self.own_host:
                raise Problem(f"DOCKER_HOST={asked_for} does not answer", "start that daemon, or unset DOCKER_HOST")
            if os.geteuid() != 0:
                raise Problem(
                    "no Docker daemon answers", "start one that this user may use; as root one is started for you"
                )
            if shutil.which("dockerd") is None or shutil.which("docker") is None:
                debian.install(log, self._cache, PACKAGES)
                if self.found():  # where an init system runs, the package has started its own
                    return
            self._start(log)

    def _start(self, log: Log) -> None:
        self._run.mkdir(parents=True, exist_ok=True)
        self._forget_the_dead()
        if " - cgroup" not in Path("/proc/self/mountinfo").read_text() and shutil.which("cgroupfs-mount"):
            log.run(["cgroupfs-mount"])
        command = [
            *("dockerd", "--host", self.own_host, "--data-root", str(self._data)),
            *("--exec-root", str(self._run / "exec"), "--pidfile", str(self._run / "docker.pid")),
            *("--bridge", "none"),  # nothing here uses the default network
        ]
        configuration = self._cache / "dockerd.json"
        settings: dict[str, object] = {}
        if runc_caps.bounded():
            shim = self._cache / "runc-caps"
            files.write(shim, Path(runc_caps.__file__).read_bytes(), 0o755)
            settings = {"runtimes": {"runc-caps": {"path": str(shim)}}, "default-runtime": "runc-caps"}
            log.say("this host lacks CAP_SYS_RESOURCE: containers do without it")
        files.write(configuration, json.dumps(settings))
        command += ["--config-file", str(configuration)]
        log.say("$ " + " ".join(command))
        daemon_log = self._cache / "logs" / "dockerd.log"
        with daemon_log.open("ab") as output:
            daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != "DOCKER_HOST"},
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and daemon.poll() is None:
            if self._answers(self.own_host):
                self.own = True
                return
            time.sleep(0.2)
        raise Problem("dockerd did not come up", f"see {daemon_log}")

    def _pid(self) -> int | None:
        """The process id of our own daemon, if it is alive."""
        try:
            pid = int((self._run / "docker.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            return None
        return pid if self.own_host in words else None

    def _forget_the_dead(self) -> None:
        """A daemon that was killed leaves its pid file, and the number may be somebody else's by now."""
        if self._pid() is None:
            (self._run / "docker.pid").unlink(missing_ok=True)

    def stop(self, say: Callable[[str], None]) -> None:
        """End our own daemon, if it runs and no cluster needs it."""
        with files.locked(self._cache / "locks" / "docker.lock"):
            pid = self._pid()
            if pid is None:
                return
            if self.clusters():
                say(f"our own Docker daemon stays for: {', '.join(self.clusters())}")
                return
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 30
            while Path(f"/proc/{pid}").exists() and self._pid() and time.monotonic() < deadline:
                time.sleep(0.1)
            if self._pid():
                raise Problem(f"our own Docker daemon (process {pid}) did not end", f"end it: kill -9 {pid}")
            shutil.rmtree(self._run, ignore_errors=True)
            if not _others():
                _clear_firewall()
            say("stopped our own Docker daemon")

    def output(self, *words: str) -> str:
        asked = subprocess.run(["docker", *words], env=self.env, capture_output=True, text=True)
        if asked.returncode:
            raise Problem(f"docker {words[0]}: {asked.stderr.strip()}")
        return asked.stdout

    def clusters(self) -> list[str]:
        label = "io.x-k8s.kind.cluster"
        return sorted(
            set(self.output("ps", "-a", "--filter", f"label={label}", "--format", f'{{{{.Label "{label}"}}}}').split())
        )

    def state(self, container: str) -> str | None:
        """running, exited, …; None where there is no such container."""
        names = self.output("ps", "-a", "--filter", f"name=^{container}$", "--format", "{{.State}}").split()
        return names[0] if names else None

    def has(self, ref: str) -> bool:
        """Whether there is such an image, by a list that is a second old at most: many are asked for at once."""
        if time.monotonic() - self._listed > 1:
            self._refs = set(self.output("images", "--format", "{{.Repository}}:{{.Tag}}").split())
            self._listed = time.monotonic()
        return ref in self._refs

    def tidy(self) -> None:
        """Remove what builds have left: what has no name, and all but the newest few of each of our images.

        Only where the daemon is our own, and so all that it has is ours.
        """
        if not self.own:
            return
        listed = self.output("images", "--filter", "reference=dev.local/*/*", "--format", "{{.Repository}}:{{.Tag}}")
        for ref in superseded(listed.split()):
            with suppress(Problem):  # a container is of it
                self.output("rmi", ref)
        self.output("image", "prune", "--force")
