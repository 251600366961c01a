"""Images of this repository: what goes into each, the tag that follows from it, and the build.

A build gets the context's files and a directory `wheels` beside them with every wheel that it installs, and no network;
so it works without one, and what it makes depends on nothing but its inputs.
"""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from . import files, pypi
from .docker import Docker
from .images import Images
from .settings import REPO, Settings
from .steps import Log, Step
from .versions import key

TABLE = Path(__file__).with_name("images.toml")


@dataclass(frozen=True)
class Source:
    name: str
    image: str
    dockerfile: Path
    context: Path
    paths: tuple[str, ...]

    @property
    def exists(self) -> bool:
        return self.dockerfile.is_file()

    def files(self) -> list[Path]:
        return files.tree(self.context, self.paths)

    @property
    def constraints(self) -> Path | None:
        beside = (self.context / "constraints.txt", REPO / "constraints.txt")
        return next((path for path in beside if path.is_file()), None)

    def requirements(self) -> list[str]:
        """What its Dockerfile installs: the dependencies of its project, or the lines of its requirements.txt."""
        pyproject, listed = self.context / "pyproject.toml", self.context / "requirements.txt"
        wanted = pypi.project_requirements(pyproject.read_text()) if pyproject.is_file() else []
        if listed.is_file():
            lines = (line.partition("#")[0].strip() for line in listed.read_text().splitlines())
            wanted += [line for line in lines if line and not line.startswith("-")]
        return wanted


def sources(table: str | None = None, repo: Path = REPO) -> dict[str, Source]:
    return {
        name: Source(
            name,
            entry["image"],
            repo / entry["dockerfile"],
            repo / entry["context"],
            tuple(entry.get("paths", ["."])),
        )
        for name, entry in tomllib.loads(table or TABLE.read_text()).items()
    }


class OwnImages:
    def __init__(self, settings: Settings, docker: Docker, images: Images) -> None:
        self._settings, self._docker, self._images = settings, docker, images

    def ensure(self, source: Source) -> tuple[str, Step]:
        base, base_step = self._images.ensure("python-base")
        requirements = source.requirements()
        wheels, fetched = pypi.wheelhouse(self._settings, source.name, requirements, source.constraints)
        content = files.digest(source.context, source.files())
        dockerfile = source.dockerfile.read_text()
        ref = f"{source.image}:{key(content, dockerfile, wheels.name, base)}"

        def make(log: Log) -> None:
            with self._images.context() as folder:
                context = Path(folder)
                for file in source.files():
                    target = context / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source.context / file, target)
                (context / "wheels").mkdir()
                if requirements:
                    shutil.copytree(wheels, context / "wheels", copy_function=files.place, dirs_exist_ok=True)
                # a name that no file of the context has
                (context / ".Dockerfile.testbed").write_text(dockerfile)
                self._images.build(log, ref, context, context / ".Dockerfile.testbed", {"PIP_NO_INDEX": "1"})

        needs = [base_step, fetched] if requirements else [base_step]
        return ref, Step(
            f"image {source.name}",
            make,
            done=lambda: self._docker.has(ref),
            needs=needs,
            seconds=30,
            shared=True,
            advice=f"look at {source.dockerfile}; hack/testbed/README.md says what a build is given",
        )
