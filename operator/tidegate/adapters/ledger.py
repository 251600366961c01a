"""The ledger on disk: a file of JSON lines for each ModelDeployment, bounded each and all together.

`<folder>/<namespace>/<name>.<uid>.jsonl`, and beside it `….jsonl.1` with what came before. What cannot be written is
lost, logged and counted: a full disk stops no rollout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.observed import Object, name
from tidegate.core.rollout.ledger import Entry, text

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a pass waits for the disk."""
CHUNK = 256 * 1024
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")


class Lost(Exception):
    """Lines could not be kept; the message says why."""


@dataclass(frozen=True)
class Limits:
    """How large it may get."""

    total: int = 1 << 30
    """Bytes of disk that all files take: beyond that, those that were not written to for the longest time go."""
    file: int = 16 << 20
    """Bytes of a file: beyond that a new one begins, and one before it is kept."""

    @property
    def look(self) -> int:
        """Bytes after which the sum of all files is looked at again."""
        return max(min(self.total // 64, self.file), 1)


class Files:
    """The ledger of one operator. Only one at a time may write to a folder."""

    def __init__(
        self, folder: Path, limits: Limits | None = None, told: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """`told` is called with how many lines were written, and how many were lost."""
        self._folder, self._limits, self._told = folder, limits or Limits(), told
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._stuck: asyncio.Future[None] | None = None
        self._last: dict[Path, tuple[str, str]] = {}
        """Of each file: its last line and the settings that it knows."""
        self._unlooked = self._limits.look
        self._well = True

    async def write(self, about: Object, entries: Sequence[Entry]) -> None:
        """Adds lines about a ModelDeployment; returns once they are written, or lost."""
        try:
            await self._write(about, entries)
        except (OSError, Lost) as error:
            self._told(0, len(entries))
            if self._well:
                log.error("the ledger in %s is not kept: %s; rollouts go on", self._folder, error)
            self._well = False
        else:
            self._told(len(entries), 0)
            if not self._well:
                log.warning("the ledger in %s is kept again", self._folder)
            self._well = True

    async def _write(self, about: Object, entries: Sequence[Entry]) -> None:
        if self._stuck and not self._stuck.done():
            raise Lost("the disk still does not answer")
        metadata = about["metadata"]
        path = self._path(metadata["namespace"], name(about), metadata["uid"])
        adding = asyncio.get_running_loop().run_in_executor(self._disk, self._add, path, entries)
        done, _ = await asyncio.wait({adding}, timeout=PATIENCE)
        if not done:
            self._stuck = adding
            raise Lost(f"the disk has not answered for {PATIENCE:.0f} s")
        adding.result()

    async def read(self, namespace: str, deployment: str) -> AsyncIterator[bytes] | None:
        """The lines about a ModelDeployment, in pieces; None if there are none.

        Of several that had the name one after another, the one that was written to last comes last.
        """
        loop = asyncio.get_running_loop()
        try:
            paths = await loop.run_in_executor(None, self._of, namespace, deployment)
        except (OSError, Lost):
            return None
        return self._pieces(paths) if paths else None

    async def _pieces(self, paths: Sequence[Path]) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        files = [path.open("rb") for path in paths]  # all of them at once: they may be renamed meanwhile
        try:
            for file in files:
                while piece := await loop.run_in_executor(None, file.read, CHUNK):
                    yield piece
        finally:
            for file in files:
                file.close()

    def _path(self, namespace: str, deployment: str, uid: str = "") -> Path:
        if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(deployment) and (not uid or _UID.fullmatch(uid))):
            raise Lost(f"{namespace}/{deployment} with uid {uid} makes no file name")
        return self._folder / namespace / f"{deployment}.{uid}.jsonl"

    def _of(self, namespace: str, deployment: str) -> list[Path]:
        folder = self._path(namespace, deployment).parent
        form = re.compile(re.escape(deployment) + r"\.[A-Za-z0-9-]+\.jsonl(\.1)?")
        there = [path for path in folder.iterdir() if form.fullmatch(path.name)] if folder.is_dir() else []
        # what came before was written to before, though the clock of the disk may be too coarse to tell
        return sorted(there, key=lambda path: (path.stat().st_mtime, path.suffix != ".1"))

    # --- in the disk's thread ---

    def _add(self, path: Path, entries: Sequence[Entry]) -> None:
        last = self._last.pop(path, None)  # if this goes wrong, what is next begins anew
        path.parent.mkdir(parents=True, exist_ok=True)
        written = b""
        for entry in entries:
            knows = (entry.line["prev"], entry.line["settings"])
            if knows != last:
                written += text(entry.start).encode() + b"\n"
            written += text(entry.line).encode() + b"\n"
            last = (entry.line["id"], entry.line["settings"])
        size = _append(path, written)
        self._last[path] = last or ("", "")
        if size > self._limits.file:
            path.replace(_before(path))
            del self._last[path]
        self._unlooked += len(written)
        if self._unlooked >= self._limits.look:
            self._make_room(path)
            self._unlooked = 0

    def _make_room(self, but: Path) -> None:
        """Removes the files that were not written to for the longest time, until the rest is within bounds."""
        found = []
        for path in self._folder.glob("*/*.jsonl*"):
            known = path.stat()
            found.append((known.st_mtime, known.st_blocks * 512, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limits.total - self._limits.look:
                break
            if path != but:
                path.unlink(missing_ok=True)
                self._last.pop(path, None)
                total -= size


def _before(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _append(path: Path, content: bytes) -> int:
    """Adds whole lines to a file, or nothing. Returns its size."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            content = b"\n" + content  # what was cut off by the end of a process is a line of its own
        done = 0
        try:
            while done < len(content):
                done += os.write(handle, content[done:])
        except OSError:
            os.ftruncate(handle, size)
            raise
        return size + done
    finally:
        os.close(handle)
