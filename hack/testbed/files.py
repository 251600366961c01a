"""Files that are either whole or absent, locks that two runs of the testbed share, and hashes of trees."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# never part of an image's inputs: what tools leave behind beside the sources
IGNORED = (".git", "__pycache__", "*.pyc", "*.egg-info", ".venv", ".*_cache", "build", "dist", ".hypothesis", "wheels")


def write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A temporary name to make a file or directory under; it gets its real name only once the block has succeeded.

    A directory that has the name by then stays: names follow from content, and somebody may be reading it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary / "it"
        if not path.is_dir():
            os.replace(temporary / "it", path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold a lock that ends with this process; `waiting` hears what it has to wait for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(f"waiting for another run of the testbed ({path.name})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def place(source: str | Path, target: str | Path) -> None:
    """A hard link where the file system allows one, a copy elsewhere."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def ignored(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED)


def tree(root: Path, paths: Iterable[str] = (".",)) -> list[Path]:
    """The files under some paths of a directory, relative and sorted, without what tools leave behind.

    A path that is not there has no files.
    """
    found: set[Path] = set()
    for name in paths:
        start = root / name
        if start.is_file():
            found.add(start.relative_to(root))
        for folder, folders, files in os.walk(start):
            folders[:] = [entry for entry in folders if not ignored(entry)]
            found.update((Path(folder) / file).relative_to(root) for file in files if not ignored(file))
    return sorted(found)


def digest(root: Path, files: Iterable[Path]) -> str:
    """A hash of names, contents and executable bits: equal trees, equal hash, on any machine."""
    total = hashlib.sha256()
    for file in files:
        path = root / file
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{file.as_posix()}\0{bool(path.stat().st_mode & 0o100)}\0{content}\n".encode())
    return total.hexdigest()[:12]
