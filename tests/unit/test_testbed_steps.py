"""The testbed's runner: what it does, what it leaves alone, and what it says when something fails."""

import io
import sys
import threading
import time
from pathlib import Path

import pytest
from hack.testbed import steps
from hack.testbed.steps import Log, Problem, Processes, Progress, Runner, Step, plan, urgency


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    fresh = Processes()
    monkeypatch.setattr(steps, "PROCESSES", fresh)
    return fresh


def runner(tmp_path: Path, cores: int = 2) -> Runner:
    return Runner(tmp_path, tmp_path / "locks", Progress(io.StringIO()), cores)


def nothing(_: Log) -> None:
    pass


def names(order: list[Step]) -> list[str]:
    return [step.name for step in order]


def test_a_step_that_is_done_hides_what_it_needs() -> None:
    source = Step("source", nothing)
    image = Step("image", nothing, done=lambda: True, needs=[source])
    cluster = Step("cluster", nothing, needs=[image])
    assert names(plan([cluster])) == ["cluster"]


def test_needs_come_first_and_once() -> None:
    base = Step("base", nothing)
    left, right = Step("left", nothing, needs=[base]), Step("right", nothing, needs=[base])
    assert names(plan([Step("top", nothing, needs=[left, right]), base])) == ["base", "left", "right", "top"]


def test_the_longest_chain_is_the_most_urgent() -> None:
    short, long = Step("short", nothing, seconds=5), Step("long", nothing, seconds=1)
    end = Step("end", nothing, needs=[long], seconds=100)
    first = urgency(plan([short, end]))
    assert first[id(long)] == 101 > first[id(short)]


def test_everything_runs_after_what_it_needs(tmp_path: Path) -> None:
    ran: list[str] = []
    base = Step("base", lambda _: ran.append("base"))
    others = [Step(f"other {n}", lambda _, n=n: ran.append(f"other {n}"), needs=[base]) for n in range(4)]  # type: ignore[misc]
    end = Step("end", lambda _: ran.append("end"), needs=others)
    assert runner(tmp_path).run([end]) == 6
    assert ran[0] == "base"
    assert ran[-1] == "end"


def test_nothing_to_do_is_nothing_done(tmp_path: Path) -> None:
    def refuse(_: Log) -> None:
        raise AssertionError("must not run")

    assert runner(tmp_path).run([Step("there already", refuse, done=lambda: True)]) == 0


def test_cores_bound_what_runs_at_once(tmp_path: Path) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work(_: Log) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    runner(tmp_path, cores=2).run([Step(f"build {n}", work, cores=1) for n in range(6)])
    assert most == 2


def test_a_step_that_wants_more_cores_than_there_are_runs_alone(tmp_path: Path) -> None:
    assert runner(tmp_path, cores=1).run([Step("wide", nothing, cores=8)]) == 1


def test_a_failure_says_which_step_where_its_log_is_and_what_to_do(tmp_path: Path) -> None:
    def fail(log: Log) -> None:
        log.run([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])

    after = Step("after", nothing, needs=[Step("Compile: it", fail, advice="try again")])
    with pytest.raises(Problem) as caught:
        runner(tmp_path).run([after])
    assert caught.value.what.startswith("Compile: it: ")
    assert "exit status 3" in caught.value.what
    assert caught.value.advice == "try again"
    assert caught.value.log == tmp_path / "compile-it.log"
    assert "the reason" in caught.value.log.read_text()


def test_a_failure_ends_what_runs_beside_it(tmp_path: Path) -> None:
    def fail(_: Log) -> None:
        time.sleep(0.2)
        raise Problem("no")

    long = Step("long", lambda log: log.run([sys.executable, "-c", "import time; time.sleep(60)"]))
    began = time.monotonic()
    with pytest.raises(Problem, match="quick: no"):
        runner(tmp_path).run([long, Step("quick", fail)])
    assert time.monotonic() - began < 15


def test_a_shared_step_is_not_done_twice(tmp_path: Path) -> None:
    """What another run has done in the meantime is seen once the lock is had."""
    done, ran = threading.Event(), []

    def run(_: Log) -> None:
        ran.append(1)

    def is_done() -> bool:
        was = done.is_set()
        done.set()  # as if by somebody else, right after the plan was made
        return was

    runner(tmp_path).run([Step("built by both", run, done=is_done, shared=True)])
    assert ran == []


def test_an_unforeseen_error_is_a_failure_too(tmp_path: Path) -> None:
    def fail(_: Log) -> None:
        raise KeyError("lost")

    with pytest.raises(Problem, match="KeyError"):
        runner(tmp_path).run([Step("odd", fail)])


def test_a_pipe_carries_and_notices_both_ends(tmp_path: Path) -> None:
    log = Log(tmp_path / "pipe.log")
    say = [sys.executable, "-c", "print('carried')"]
    log.pipe(say, [sys.executable, "-c", "import sys; print(sys.stdin.read().upper())"])
    with pytest.raises(Problem):
        log.pipe([sys.executable, "-c", "raise SystemExit(1)"], [sys.executable, "-c", "import sys; sys.stdin.read()"])
    log.close()
    assert "CARRIED" in (tmp_path / "pipe.log").read_text()


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    log = Log(tmp_path / "slow.log")
    with pytest.raises(Problem, match="did not end"):
        log.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    log.close()


def test_plain_progress_names_only_what_takes_long() -> None:
    out = io.StringIO()
    progress = Progress(out)
    progress.tick({"quick": 0.5, "slow": 3.0}, waiting=1)
    progress.tick({"slow": 4.0}, waiting=1)
    progress.finished("slow", 75.0)
    lines = [line.partition("] ")[2] for line in out.getvalue().splitlines()]
    assert [" ".join(line.split()) for line in lines] == ["start slow", "done slow 1m15s"]
