"""Programs built from published Go modules.

`go install module@version` refuses a module with replace lines, so each build has a small module of its own that
requires the wanted one and repeats the replacements that matter. All programs of one module are built by one `go
build`: they share most of their packages, and two builds beside each other would compile those twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from . import files
from .settings import Settings
from .steps import Log, Problem, Step
from .versions import key, number, pinned, staging

HERE = Path(__file__).parent
KUBERNETES = "k8s.io/kubernetes"


@dataclass(frozen=True)
class Programs:
    """Programs of one module: what each is called, and its package. One that starts with ./ lies beside this file."""

    name: str
    module: str | None
    packages: Mapping[str, str]
    ldflags: str = ""
    tags: str = ""
    seconds: float = 60
    also: Mapping[str, str] = field(default_factory=dict)  # more modules that our own package imports

    @property
    def version(self) -> str:
        return pinned().modules[self.module] if self.module else "v0.0.0"

    def path(self, cache: Path) -> Path:
        own = {
            package: files.digest(HERE / package, files.tree(HERE / package))
            for package in self.packages.values()
            if package.startswith("./")
        }
        made_from = key(self.module, self.version, self.packages, self.ldflags, self.tags, own)
        return cache / "programs" / f"{self.name}-{self.version}-{made_from}"


def _kubernetes() -> Programs:
    version = pinned().modules[KUBERNETES]
    stamp = "k8s.io/component-base/version"
    _, minor, _ = number(version)
    return Programs(
        "kubernetes",
        KUBERNETES,
        {"kubenode": "./kubenode", "kubeadm": f"{KUBERNETES}/cmd/kubeadm"},
        ldflags=f"-X {stamp}.gitVersion={version} -X {stamp}.gitMajor=1 -X {stamp}.gitMinor={minor}",
        seconds=300,
        also={"k8s.io/component-base": staging(version)},
    )


def _commands(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}/cmd/{name}" for name in names}


SERVING, KOURIER, KSERVE = "knative.dev/serving", "knative.dev/net-kourier", "github.com/kserve/kserve"
PROMETHEUS, VERSITYGW = "github.com/prometheus/prometheus", "github.com/versity/versitygw"
ETCD, COREDNS, KIND, HELM = (
    *("go.etcd.io/etcd/server/v3", "github.com/coredns/coredns"),
    *("sigs.k8s.io/kind", "helm.sh/helm/v3"),
)
PROGRAMS = {
    programs.name: programs
    for programs in (
        _kubernetes(),
        Programs("etcd", ETCD, {"etcd": ETCD}, seconds=40),
        Programs("coredns", COREDNS, {"coredns": COREDNS}, seconds=60),
        Programs("kind", KIND, {"kind": KIND}, seconds=15),
        Programs("helm", HELM, _commands(HELM, "helm"), seconds=60),
        Programs("pause", None, {"pause": "./pause"}, seconds=5),
        Programs(
            "knative",
            SERVING,
            _commands(SERVING, "controller", "webhook", "activator", "autoscaler", "queue"),
            seconds=150,
        ),
        Programs("kourier", KOURIER, _commands(KOURIER, "kourier"), seconds=30),
        Programs("kserve", KSERVE, _commands(KSERVE, "manager", "agent", "router"), seconds=150),
        Programs(
            "prometheus",
            PROMETHEUS,
            _commands(PROMETHEUS, "prometheus", "promtool"),
            tags="remove_all_sd,enable_kubernetes_sd",  # of its service discoveries just the one used here
            seconds=150,
        ),
        Programs("versitygw", VERSITYGW, _commands(VERSITYGW, "versitygw"), seconds=90),
    )
}


def toolchain() -> Step:
    """Go itself: new enough, or able to fetch a newer one by its own means."""
    minimum = pinned().go_minimum

    def check(log: Log) -> None:
        if shutil.which("go") is None:
            raise Problem("there is no go command", f"install Go {minimum} or newer and put it on PATH")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "go.mod").write_text(f"module check\n\ngo {minimum}\n")
            asked = subprocess.run(
                ["go", "env", "GOVERSION"],
                cwd=folder,
                capture_output=True,
                text=True,
                env={**os.environ, "GOWORK": "off"},
            )
        have = asked.stdout.strip()
        if asked.returncode or number(have) < number(minimum):
            raise Problem(
                f"Go {minimum} or newer is needed; this is {have or asked.stderr.strip()}",
                f"install Go {minimum}, or let Go fetch it: go env -w GOTOOLCHAIN=auto",
            )
        log.say(have)

    return Step("Go toolchain", check)


def module_dir(log: Log, module: str, version: str | None = None) -> Path:
    """The directory of a module's source in Go's module cache, downloaded if it isn't there."""
    wanted = f"{module}@{version or pinned().modules[module]}"
    env = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    answer = json.loads(log.output(["go", "mod", "download", "-json", wanted], env=env, cwd=Path("/")))
    return Path(answer["Dir"])


def replacements(module: str, gomod: str) -> list[str]:
    """The replace lines that a module's go.mod has for its own build, as they must stand in another module's."""
    block = r"^replace\s*\(\n(.*?)^\)"
    lines = [line for body in re.findall(block, gomod, re.M | re.S) for line in body.splitlines()]
    lines += re.findall(r"^replace\s+([^(\s].*)$", gomod, re.M)
    found = []
    for line in lines:
        line = line.partition("//")[0].strip()
        if not line:
            continue
        source, _, target = (part.strip() for part in line.partition("=>"))
        if not target.startswith("."):
            found.append(f"{source} => {target}")
        elif module == KUBERNETES:  # its staging directories, published as modules of their own
            found.append(f"{source} => {source} {staging(pinned().modules[KUBERNETES])}")
        # any other directory is a sibling in the same repository: its published version is what go.mod requires
    return found


@cache
def build(settings: Settings, name: str) -> Step:
    programs = PROGRAMS[name]
    path = programs.path(settings.cache)

    def run(log: Log) -> None:
        with tempfile.TemporaryDirectory(prefix="tidegate-go-") as folder:
            work = Path(folder)
            gomod = [f"module testbed/{name}", f"go {pinned().go_minimum}"]
            if programs.module:
                source = module_dir(log, programs.module)
                gomod += [f"require {module} {version}" for module, version in programs.also.items()]
                gomod.append(f"require {programs.module} {programs.version}")
                lines = replacements(programs.module, (source / "go.mod").read_text())
                gomod += [f"replace {line}" for line in lines]
            (work / "go.mod").write_text("\n".join(gomod) + "\n")
            for package in programs.packages.values():
                if package.startswith("./"):
                    shutil.copytree(HERE / package, work / package)
            env = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false -mod=mod"}
            with files.made_whole(path) as out:
                out.mkdir()
                flags = ["-trimpath", "-ldflags", f"-s -w {programs.ldflags}".strip(), "-tags", programs.tags]
                log.run(["go", "build", *flags, "-o", f"{out}/", *programs.packages.values()], env=env, cwd=work)
                for program, package in programs.packages.items():
                    built = out / _binary(package)
                    if built.name != program:
                        built.rename(out / program)

    return Step(
        f"Go programs: {name} {programs.version if programs.module else ''}".strip(),
        run,
        done=path.is_dir,
        shared=True,
        seconds=programs.seconds,
        cores=max(1, (os.cpu_count() or 1) // 2),
        advice="run it again: Go keeps what was downloaded and compiled, so it goes on from there",
    )


def _binary(package: str) -> str:
    """What `go build` calls a package's program: its last element, unless that is a major version."""
    *before, last = package.split("/")
    return before[-1] if re.fullmatch(r"v\d+", last) and before else last
