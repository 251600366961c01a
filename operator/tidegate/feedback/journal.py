"""The counters on disk: a snapshot, and logs of what came after it.

`snapshot-N` has everything from before `log-N`. A log's line is a checksum and one commit in JSON, written and synced
in one piece before anybody is told of it. So after a crash, of the machine too, only the last line of the last log can
be less than whole, and nobody was told of that one: it is dropped. Anything else that is not as it was written means
that acknowledged rewards are gone, and the store does not open.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tidegate.feedback.items import Item, Where
from tidegate.feedback.limits import Limits
from tidegate.feedback.totals import Commit, Totals

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"(snapshot|log)-(\d+)")


class StoreError(Exception):
    """The store cannot be opened; the message says why and what to do."""


class Full(Exception):
    """The disk is full. Nothing of the commit was kept, and the store goes on once there is room."""


_HEAD = re.compile(rb"([0-9a-f]{8}) (\d{1,12}) ")


def encode(content: Any) -> bytes:
    """A line: CRC-32 in eight hexadecimal digits, length in bytes, JSON of that length, a newline."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %d %s\n" % (zlib.crc32(text), len(text), text)


def decode(line: bytes) -> Any:
    """What `encode` was given.

    Raises:
        ValueError: the line is not whole, or not as it was written.
    """
    head = _HEAD.match(line)
    text = line[head.end() : -1] if head else b""
    if not head or line[-1:] != b"\n" or len(text) != int(head[2]) or zlib.crc32(text) != int(head[1], 16):
        raise ValueError("the checksum is wrong")
    return json.loads(text)


def _torn(rest: bytes) -> bool:
    """Whether what a log ends with can be one line that was being written, and not two that run into each other."""
    head = _HEAD.match(rest)
    return not head or len(rest) <= head.end() + int(head[2]) + 1


class Journal:
    """An open store. Its methods block while the disk works; one thread at a time may call them.

    Attributes:
        size: bytes of the present log.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Opens the store of a folder, or begins one where there is none.

        Raises:
            StoreError: another process has it open, it was written by a later release, or something in it is damaged.
        """
        self._folder = folder
        self.size = 0
        self._sequence = 0
        """Number of the last commit that is durable, since the store began."""
        self._number = 0
        """That of the present log."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}. Check its owner and mode") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StoreError(f"{folder} is in use by another process: give each feedback service its own") from None
        try:
            self.totals = self._recover(limits)
            self._file = os.open(self._path("log", self._number), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder. What was appended is there already."""
        os.close(self._file)
        os.close(self._lock)

    def append(self, commit: Commit) -> None:
        """Makes a commit durable.

        Raises:
            Full: there is no room on the disk.
            OSError: the disk failed. What it has is not known any more: the process must end and read it anew.
        """
        items = [[*item.where, item.version, item.reward, item.key] for item in commit.items]
        forget = [[*where, version] for where, version in commit.forget]
        line = encode([self._sequence + 1, commit.now, forget, items])
        try:
            _write(self._file, line)
            os.fdatasync(self._file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # half a line must not stay: what is written next would come after it
            os.ftruncate(self._file, self.size)
            os.fdatasync(self._file)
            raise Full(f"no room in {self._folder}: {error.strerror}") from error
        self._sequence += 1
        self.size += len(line)

    def compact(self, totals: Totals) -> None:
        """Begins a new log, writes a snapshot of what came before it, and removes that.

        `totals` must have every commit that was appended. A crash anywhere in between leaves a store that opens.

        Raises:
            Full: there is no room for the snapshot. Nothing is lost; it is worth another try later.
            OSError: as with `append`.
        """
        number = self._number + 1
        try:
            self._create_log(number)
            file = os.open(self._path("log", number), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.close(self._file)
            self._file, self._number, self.size = file, number, 0
            self._write_snapshot(number, totals)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with suppress(FileNotFoundError):
                self._path("snapshot", number).with_suffix(".tmp").unlink()
            raise Full(f"no room for a snapshot in {self._folder}: {error.strerror}") from error
        self._remove_before(number)

    # --- files ---

    def _path(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:08d}"

    def _numbers(self, kind: str) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[2]) for match in matches if match and match[1] == kind)

    def _sync_folder(self) -> None:
        """Makes names durable that came or went."""
        file = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def _create_log(self, number: int) -> None:
        os.close(os.open(self._path("log", number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._sync_folder()

    def _write_snapshot(self, number: int, totals: Totals) -> None:
        path = self._path("snapshot", number)
        draft = path.with_suffix(".tmp")
        content = {"format": FORMAT, "sequence": self._sequence, **totals.dump()}
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(file, encode(content))
            os.fsync(file)
        finally:
            os.close(file)
        draft.rename(path)
        self._sync_folder()

    def _remove_before(self, number: int) -> None:
        for kind in ("snapshot", "log"):
            for old in self._numbers(kind):
                if old < number:
                    self._path(kind, old).unlink()

    # --- reading it back ---

    def _recover(self, limits: Limits) -> Totals:
        for draft in self._folder.glob("snapshot-*.tmp"):
            draft.unlink()
        snapshots, logs = self._numbers("snapshot"), self._numbers("log")
        if not snapshots:
            return self._begin(limits, logs)
        first = snapshots[-1]
        totals = self._read_snapshot(first, limits)
        logs = [number for number in logs if number >= first]
        if logs != list(range(first, first + len(logs))) or not logs:
            raise self._damaged(self._path("log", first), "a log is missing")
        self._number = logs[-1]
        for number in logs:
            for commit in self._read_log(number):
                totals.apply(commit)
        self._remove_before(first)
        return totals

    def _begin(self, limits: Limits, logs: list[int]) -> Totals:
        if any(self._path("log", number).stat().st_size for number in logs):
            raise self._damaged(self._folder, "there are logs, but no snapshot")
        totals = Totals(uuid.uuid4().hex, limits)
        self._number = 1
        # the log first: a snapshot says that its log is there
        self._create_log(1)
        self._write_snapshot(1, totals)
        return totals

    def _read_snapshot(self, number: int, limits: Limits) -> Totals:
        path = self._path("snapshot", number)
        try:
            content = decode(path.read_bytes())
            if content["format"] != FORMAT:
                raise StoreError(f"{path} was written by a later release of Tidegate: install that one again")
            self._sequence = content["sequence"]
            return Totals.load(content, limits)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, str(error)) from error

    def _read_log(self, number: int) -> Iterator[Commit]:
        path = self._path("log", number)
        content, at = path.read_bytes(), 0
        while at < len(content):
            end = content.find(b"\n", at) + 1 or len(content)
            try:
                sequence, now, forget, items = decode(content[at:end])
            except ValueError as error:
                if end < len(content) or number != self._number or not _torn(content[at:]):
                    raise self._damaged(path, f"{error} at byte {at}") from error
                log.warning("%s: dropped its last %d bytes, which nobody was told of: a crash", path, end - at)
                self._cut(path, at)
                break
            if sequence != self._sequence + 1:
                raise self._damaged(path, f"commit {self._sequence + 1} is missing at byte {at}")
            self._sequence = sequence
            yield Commit(
                now,
                [(Where(namespace, name), version) for namespace, name, version in forget],
                [Item(Where(namespace, name), *rest) for namespace, name, *rest in items],
            )
            at = end
        if number == self._number:
            self.size = at

    def _cut(self, path: Path, size: int) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(file, size)
            os.fsync(file)
        finally:
            os.close(file)

    def _damaged(self, path: Path, what: str) -> StoreError:
        return StoreError(
            f"{path} is damaged: {what}. Rewards that were acknowledged are missing. Bring the folder back from a "
            f"backup, or empty {self._folder} to count from zero; whoever reads the counters will notice by their mark"
        )


def _write(file: int, content: bytes) -> None:
    """All of it: a write may stop short, on a disk that is about to be full above all."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
