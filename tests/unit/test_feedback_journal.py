"""The feedback service's store: what was appended is there after any crash, and what is damaged is not passed over."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidegate.feedback import journal as module
from tidegate.feedback.items import Item, Where
from tidegate.feedback.journal import Full, Journal, StoreError, decode, encode
from tidegate.feedback.limits import Limits
from tidegate.feedback.totals import Commit

LIMITS = Limits(ids=3)
CHURN = Where("shop", "churn")
V1, V2 = "v1-00000001", "v2-00000002"


def add(journal: Journal, number: int) -> None:
    """One commit with a reward, an id, and now and then something to forget."""
    forget = [(CHURN, V1)] if number % 5 == 4 else []
    commit = Commit(
        1000 + number, forget, [Item(CHURN, (V1, V2)[number % 2], number / 10, number), Item(CHURN, V1, 0.1)]
    )
    journal.append(commit)
    journal.totals.apply(commit)


def read(folder: Path, limits: Limits = LIMITS) -> dict[str, Any]:
    with Journal(folder, limits) as journal:
        return journal.totals.dump()


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("log-*"))


def test_line_is_read_as_it_was_written() -> None:
    content = [1, {"ä": 0.1 + 0.2}, None]
    assert decode(encode(content)) == content
    assert encode(content).count(b"\n") == 1


def test_new_store_has_a_mark_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    first = read(tmp_path / "a")
    assert first["deployments"] == []
    assert read(tmp_path / "a") == first
    assert read(tmp_path / "b")["mark"] != first["mark"]
    shutil.rmtree(tmp_path / "a")
    assert read(tmp_path / "a")["mark"] != first["mark"], "a store that was lost"


def test_everything_is_there_again(tmp_path: Path) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        for number in range(8):
            add(journal, number)
        expected = journal.totals.dump()
    assert read(tmp_path) == expected
    with Journal(tmp_path, LIMITS) as journal:
        journal.compact(journal.totals)
        assert journal.size == 0
        add(journal, 8)
        expected = journal.totals.dump()
    assert read(tmp_path) == expected
    assert len(list(tmp_path.iterdir())) == 3, "lock, snapshot and log"


def test_log_that_is_cut_anywhere_gives_whole_commits_and_goes_on(tmp_path: Path) -> None:
    store, states, ends = tmp_path / "store", [], [0]
    with Journal(store, LIMITS) as journal:
        states.append(journal.totals.dump())
        for number in range(3):
            add(journal, number)
            states.append(journal.totals.dump())
            ends.append(journal.size)
    for size in range(ends[-1] + 1):
        copy = tmp_path / f"cut-{size}"
        shutil.copytree(store, copy)
        os.truncate(logs(copy)[0], size)
        whole = max(number for number, end in enumerate(ends) if end <= size)
        with Journal(copy, LIMITS) as journal:
            assert journal.totals.dump() == states[whole], size
            add(journal, whole)
            after = journal.totals.dump()
        assert read(copy) == after, "what was cut does not get in the way of what comes after it"
        shutil.rmtree(copy)


def test_last_line_with_a_hole_is_dropped(tmp_path: Path) -> None:
    """A machine that crashes may have written the end of a line and not its middle."""
    with Journal(tmp_path, LIMITS) as journal:
        add(journal, 0)
        expected, size = journal.totals.dump(), journal.size
        add(journal, 1)
    content = logs(tmp_path)[0].read_bytes()
    logs(tmp_path)[0].write_bytes(content[: size + 10] + bytes(20) + content[size + 30 :])
    assert read(tmp_path) == expected


def test_any_wrong_byte_before_the_last_line_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        add(journal, 0)
        add(journal, 1)
        size = journal.size
        add(journal, 2)
    path = logs(tmp_path)[0]
    content = path.read_bytes()
    for at in range(size):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(StoreError, match="is damaged"):
            Journal(tmp_path, LIMITS)
    path.write_bytes(content)
    read(tmp_path)


def damage_snapshot(folder: Path) -> None:
    (path,) = folder.glob("snapshot-*")
    path.write_bytes(path.read_bytes()[:-5])


def lose_snapshot(folder: Path) -> None:
    (path,) = folder.glob("snapshot-*")
    path.unlink()


def lose_log(folder: Path) -> None:
    logs(folder)[0].unlink()


def lose_a_line(folder: Path) -> None:
    lines = logs(folder)[0].read_bytes().splitlines(keepends=True)
    logs(folder)[0].write_bytes(b"".join(lines[:1] + lines[2:]))


@pytest.mark.parametrize("damage", [damage_snapshot, lose_snapshot, lose_log, lose_a_line])
def test_what_is_missing_is_told_and_what_to_do(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        for number in range(3):
            add(journal, number)
    damage(tmp_path)
    with pytest.raises(StoreError, match=r"is damaged: .*Bring the folder back from a backup, or empty"):
        Journal(tmp_path, LIMITS)


def test_later_format_is_told_apart(tmp_path: Path) -> None:
    read(tmp_path)
    (path,) = tmp_path.glob("snapshot-*")
    path.write_bytes(encode(decode(path.read_bytes()) | {"format": 2}))
    with pytest.raises(StoreError, match="written by a later release"):
        Journal(tmp_path, LIMITS)


def test_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path, LIMITS), pytest.raises(StoreError, match="in use by another process"):
        Journal(tmp_path, LIMITS)
    read(tmp_path)


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        Journal(tmp_path / "file" / "store", LIMITS)


def test_lowered_limits_keep_the_counters(tmp_path: Path) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        for number in range(4):
            add(journal, number)
        journal.compact(journal.totals)
    (before,), (after,) = read(tmp_path)["deployments"], read(tmp_path, Limits(1, 1, 1))["deployments"]
    assert after["versions"] == before["versions"]
    assert (before["ids"], after["ids"]) == ([1, 2, 3], [3])


def test_full_disk_keeps_nothing_of_the_commit_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        add(journal, 0)
        expected, write, sync = journal.totals.dump(), os.write, os.fdatasync

        def half(file: int, content: bytes) -> int:
            if len(content) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, content[: len(content) // 2])

        monkeypatch.setattr(module.os, "write", half)
        with pytest.raises(Full, match="No space left"):
            add(journal, 1)
        monkeypatch.setattr(module.os, "write", write)

        failing = [OSError(errno.EDQUOT, "Disk quota exceeded")]
        monkeypatch.setattr(module.os, "fdatasync", lambda file: raise_(failing.pop()) if failing else sync(file))
        with pytest.raises(Full, match="quota"):
            add(journal, 1)
        assert journal.totals.dump() == expected
        add(journal, 1)
        expected = journal.totals.dump()
    assert read(tmp_path) == expected


def raise_(error: BaseException) -> None:
    raise error


def test_failing_disk_is_not_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        monkeypatch.setattr(module.os, "fdatasync", lambda _: raise_(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            add(journal, 0)


class Killed(BaseException):
    """The process ends here."""


CALLS = ("open", "write", "fsync", "fdatasync")


def test_crash_at_any_call_while_compacting_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "store", LIMITS) as journal:
        for number in range(4):
            add(journal, number)
        expected = journal.totals.dump()
    points = 0
    while True:
        copy = tmp_path / f"crash-{points}"
        shutil.copytree(tmp_path / "store", copy)
        crashed = False
        journal = Journal(copy, LIMITS)
        with monkeypatch.context() as patch:
            left = [points]
            for name in CALLS:
                patch.setattr(module.os, name, counted(getattr(os, name), left))
            for name in ("rename", "unlink"):
                patch.setattr(Path, name, counted(getattr(Path, name), left))
            try:
                journal.compact(journal.totals)
            except Killed:
                crashed = True
        journal.close()
        with Journal(copy, LIMITS) as journal:
            assert journal.totals.dump() == expected, points
            add(journal, 4)
            after = journal.totals.dump()
        assert read(copy) == after, points
        if not crashed:
            break
        points += 1
    assert points >= 10


def counted(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The call, until so many were made; then the end."""

    def counting(*args: Any, **named: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return call(*args, **named)

    return counting


def test_no_room_for_a_snapshot_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, LIMITS) as journal:
        add(journal, 0)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: raise_(OSError(errno.ENOSPC, "No space left on device")))
            for _ in range(2):
                with pytest.raises(Full, match="no room for a snapshot"):
                    journal.compact(journal.totals)
                add(journal, 1)
        expected = journal.totals.dump()
    assert read(tmp_path) == expected
    with Journal(tmp_path, LIMITS) as journal:
        journal.compact(journal.totals)
    assert read(tmp_path) == expected
    assert len(list(tmp_path.iterdir())) == 3


def test_every_commit_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a power cut would leave it: what was written and not synced is gone."""
    synced: dict[int, int] = {}
    sync = os.fdatasync

    def note(file: int) -> None:
        sync(file)
        synced[os.fstat(file).st_ino] = os.fstat(file).st_size

    monkeypatch.setattr(module.os, "fdatasync", note)
    store = tmp_path / "store"
    with Journal(store, LIMITS) as journal:
        for number in range(3):
            add(journal, number)
            copy = tmp_path / f"cut-{number}"
            shutil.copytree(store, copy)
            os.truncate(logs(copy)[0], synced[logs(store)[0].stat().st_ino])
            assert read(copy) == journal.totals.dump()
