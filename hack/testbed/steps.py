"""Steps: what has to be true, what it needs first, and a runner that makes it so, in parallel and showing its progress.

A step says how to tell that it is done already. The runner walks from what is wanted towards what that needs and stops
at every step that is done, so a second run does nothing and an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from .files import locked

SHOWN_AFTER = 2.0  # seconds after which a running step is worth a line
NOTICED = 0.1  # seconds below which a finished step is not
PLAIN_EVERY = 30.0  # seconds between signs of life where there is no terminal


class Problem(Exception):
    """Something that the caller can act on: what is wrong, and the next thing to do."""

    def __init__(self, what: str, advice: str = "", log: Path | None = None) -> None:
        super().__init__(what)
        self.what, self.advice, self.log = what, advice, log


class Interrupted(Exception):
    """Raised within a step once the caller has asked to stop."""


@dataclass(eq=False)
class Step:
    name: str
    run: Callable[[Log], None]
    done: Callable[[], bool] = lambda: False
    needs: Sequence[Step] = ()
    seconds: float = 1.0  # about how long it takes: the longest chain of steps starts first
    cores: int = 0  # how many cores it keeps busy; what waits for disk or network counts as none
    advice: str = ""  # what to do next if it fails
    shared: bool = False  # it is for all clusters: one run of the testbed at a time does it


class Processes:
    """The programs that run now, so that an interrupt can end each of them with all that it started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopping = False

    def start(self, command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        with self._lock:
            if self.stopping:
                raise Interrupted
            process: subprocess.Popen[bytes] = subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]
            self._running.add(process)
        return process

    def finished(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running.discard(process)
            if self.stopping:
                raise Interrupted

    def stop(self) -> None:
        with self._lock:
            self.stopping = True
            running = list(self._running)
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                if process.poll() is None:
                    try:
                        os.killpg(process.pid, kind)
                    except ProcessLookupError:
                        continue
            deadline = time.monotonic() + 10
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(0.05)


PROCESSES = Processes()


class Log:
    """Where one step writes what its programs say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")

    def close(self) -> None:
        self._file.close()

    def say(self, text: str) -> None:
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
    ) -> None:
        """Run a program to its end, its output going to the log."""
        words = [str(word) for word in command]
        self.say("$ " + " ".join(words))
        process = PROCESSES.start(
            words,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )
        self._wait(process, words, stdin, timeout)

    def output(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Run a program to its end and return what it printed."""
        words = [str(word) for word in command]
        self.say("$ " + " ".join(words))
        process = PROCESSES.start(
            words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._file
        )
        printed = self._wait(process, words, None, None)
        return printed.decode()

    def pipe(
        self, source: Sequence[str | Path], sink: Sequence[str | Path], *, env: Mapping[str, str] | None = None
    ) -> None:
        """source | sink, with both ends' failures noticed."""
        first, second = [str(word) for word in source], [str(word) for word in sink]
        self.say("$ " + " ".join(first) + " | " + " ".join(second))
        upstream = PROCESSES.start(first, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._file)
        downstream = PROCESSES.start(
            second, env=env, stdin=upstream.stdout, stdout=self._file, stderr=subprocess.STDOUT
        )
        assert upstream.stdout is not None  # noqa: S101  asked for just above
        upstream.stdout.close()  # it is the other's now
        upstream.stdout = None
        self._wait(downstream, second, None, None)
        self._wait(upstream, first, None, None)

    def _wait(
        self, process: subprocess.Popen[bytes], words: list[str], stdin: bytes | None, timeout: float | None
    ) -> bytes:
        try:
            printed, _ = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Problem(f"{Path(words[0]).name} did not end within {timeout:.0f} s") from None
        finally:
            PROCESSES.finished(process)
        if process.returncode:
            raise Problem(f"{Path(words[0]).name} ended with exit status {process.returncode}")
        return printed or b""


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"


class Progress:
    """Says what runs and for how long: one line that is redrawn on a terminal, plain lines elsewhere."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()
        self._spoke = self._began
        self._shown: set[str] = set()
        self._lock = threading.Lock()

    def _line(self, text: str) -> None:
        clock = int(time.monotonic() - self._began)
        clear = "\r\x1b[K" if self._live else ""
        self._out.write(f"{clear}[{clock // 60:2d}:{clock % 60:02d}] {text}\n")
        self._out.flush()
        self._spoke = time.monotonic()

    def say(self, text: str) -> None:
        with self._lock:
            self._line(text)

    def finished(self, name: str, seconds: float) -> None:
        if seconds >= NOTICED:
            self.say(f"done   {name:<58} {duration(seconds):>7}")

    def tick(self, running: Mapping[str, float], waiting: int) -> None:
        """Called several times a second with the running steps and how long each has run."""
        with self._lock:
            long = {name: spent for name, spent in running.items() if spent >= SHOWN_AFTER}
            now = ", ".join(f"{name} {duration(spent)}" for name, spent in long.items())
            if self._live:
                if now:
                    width = os.get_terminal_size(self._out.fileno()).columns - 1
                    text = f"  ...  {now}" + (f"  ({waiting} to come)" if waiting else "")
                    self._out.write("\r\x1b[K" + text[:width])
                    self._out.flush()
                return
            for name in long.keys() - self._shown:
                self._shown.add(name)
                self._line(f"start  {name}")
            if now and time.monotonic() - self._spoke > PLAIN_EVERY:
                self._line(f"  ...  {now}" + (f"  ({waiting} to come)" if waiting else ""))


def plan(wanted: Iterable[Step]) -> list[Step]:
    """The steps that have work to do, each after those that it needs. A step that is done hides all that it needs."""
    order: list[Step] = []
    seen: dict[int, bool] = {}  # step -> has work to do

    def visit(step: Step) -> bool:
        if id(step) not in seen:
            seen[id(step)] = False
            if not step.done():
                for need in step.needs:
                    visit(need)
                order.append(step)
                seen[id(step)] = True
        return seen[id(step)]

    for step in wanted:
        visit(step)
    return order


def urgency(order: Sequence[Step]) -> dict[int, float]:
    """For each step the seconds until the end if it began now: its own, and those of the longest chain behind it."""
    behind: dict[int, float] = {}
    for step in reversed(order):
        total = step.seconds + behind.get(id(step), 0.0)
        behind[id(step)] = total
        for need in step.needs:
            behind[id(need)] = max(behind.get(id(need), 0.0), total)
    return behind


@dataclass
class Runner:
    logs: Path
    locks: Path
    progress: Progress = field(default_factory=Progress)
    cores: int = os.cpu_count() or 1

    def run(self, wanted: Iterable[Step]) -> int:
        """Make the wanted steps true; returns how many had work to do."""
        order = plan(wanted)
        first = urgency(order)
        waiting = sorted(order, key=lambda step: -first[id(step)])
        pending = {id(step) for step in order}
        running: dict[str, float] = {}
        failures: list[Problem] = []
        changed = threading.Condition()
        busy = 0

        def work(step: Step) -> None:
            nonlocal busy
            began = time.monotonic()
            failure = self._run_one(step)
            with changed:
                running.pop(step.name)
                busy -= step.cores
                if failure is None:
                    pending.discard(id(step))
                    self.progress.finished(step.name, time.monotonic() - began)
                else:
                    failures.append(failure)
                changed.notify_all()

        with changed:
            while pending and not (failures and not running):
                for step in [] if failures else list(waiting):
                    ready = not any(id(need) in pending for need in step.needs)
                    if ready and (step.cores == 0 or busy == 0 or busy + step.cores <= self.cores):
                        waiting.remove(step)
                        busy += step.cores
                        running[step.name] = time.monotonic()
                        threading.Thread(target=work, args=(step,), name=step.name, daemon=True).start()
                changed.wait(0.2)
                now = time.monotonic()
                self.progress.tick({name: now - began for name, began in running.items()}, len(waiting))
                if failures and running:
                    PROCESSES.stop()
        real = [failure for failure in failures if failure.what != "interrupted"]
        if failures:
            raise (real or failures)[0]
        return len(order)

    def _run_one(self, step: Step) -> Problem | None:
        slug = re.sub(r"[^a-z0-9.]+", "-", step.name.lower()).strip("-")
        path = self.logs / f"{slug}.log"
        log = Log(path)
        try:
            if step.shared:
                with locked(self.locks / f"{slug}.lock", log.say):
                    if not step.done():
                        step.run(log)
            else:
                step.run(log)
        except Interrupted:
            return Problem("interrupted")
        except Problem as problem:
            return Problem(f"{step.name}: {problem.what}", problem.advice or step.advice, path)
        except Exception as error:  # a thread must not die unheard
            log.say(f"{type(error).__name__}: {error}")
            return Problem(f"{step.name}: {type(error).__name__}: {error}", step.advice, path)
        finally:
            log.close()
        return None


def tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
