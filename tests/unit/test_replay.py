"""Traces in, verdicts out; and what the judge promises, on many traces at once with fixed seeds."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tidegate.cli import main
from tidegate.core.rollout.counts import Requests, Rewards
from tidegate.core.rollout.judge import Judge
from tidegate.replay.traces import Options, Trace, judge, read

FIVE = 5.0


def counts(
    rng: np.random.Generator, scrapes: int, rate: float, weight: float, stable: float, canary: float
) -> dict[str, Any]:
    """Cumulative counts of Poisson traffic, a scrape every five seconds."""
    n = rng.poisson(FIVE * rate * np.array([1 - weight, weight]), (scrapes, 2))
    bad = rng.binomial(n, np.array([stable, canary]))
    return {
        "t": np.arange(scrapes) * FIVE,
        "requests": np.cumsum(n, axis=0).astype(float),
        "errors": np.cumsum(bad, axis=0).astype(float),
        "weight": np.full(scrapes, weight),
    }


def many(runs: int, scrapes: int, *, seed: int, rate: float, weight: float, stable: float, canary: float) -> list[str]:
    rng = np.random.default_rng(seed)
    traces = [Trace(path=str(run), **counts(rng, scrapes, rate, weight, stable, canary)) for run in range(runs)]
    return [outcome.verdict for outcome in judge(traces, Options())]


def at_most(found: int, runs: int, promised: float) -> None:
    """No more than a promise allows, but for what chance explains once in a thousand times."""
    tail = sum(comb(runs, k) * promised**k * (1 - promised) ** (runs - k) for k in range(found, runs + 1))
    assert found == 0 or tail > 1e-3, f"{found} of {runs}, {promised:.1%} was promised"


@pytest.mark.parametrize("base", [0.001, 0.005, 0.02])
@pytest.mark.parametrize("margin", [False, True], ids=["identical", "at the margin"])
def test_a_version_that_does_what_is_allowed_is_rarely_degraded(base: float, margin: bool) -> None:
    canary = 1.5 * base + 0.005 if margin else base
    verdicts = many(500, 360, seed=1, rate=50, weight=0.2, stable=base, canary=canary)
    at_most(verdicts.count("Degraded"), 500, 0.01)


@pytest.mark.parametrize("base", [0.001, 0.005, 0.02])
def test_a_version_that_is_just_worse_than_allowed_is_rarely_healthy(base: float) -> None:
    verdicts = many(500, 360, seed=2, rate=50, weight=0.2, stable=base, canary=1.5 * base + 0.0051)
    at_most(verdicts.count("Healthy"), 500, 0.05)


@pytest.mark.parametrize(("canary", "scrapes", "power"), [(1.0, 24, 0.99), (0.05, 60, 0.9), (0.025, 240, 0.9)])
def test_a_regression_is_found(canary: float, scrapes: int, power: float) -> None:
    verdicts = many(300, scrapes, seed=3, rate=50, weight=0.2, stable=0.005, canary=canary)
    assert verdicts.count("Degraded") >= power * 300


def test_a_version_as_good_is_proven_healthy() -> None:
    verdicts = many(300, 360, seed=4, rate=50, weight=0.5, stable=0.002, canary=0.002)
    assert verdicts.count("Healthy") >= 290


def test_no_traffic_is_no_verdict() -> None:
    assert set(many(3, 1000, seed=5, rate=0, weight=0.2, stable=0.5, canary=1.0)) == {"Undecided"}


# --- files ---


def lines(
    rng: np.random.Generator, scrapes: int, slow: float = 0.05, reward: float = 0.7, canary: float = 0.005
) -> list[dict[str, Any]]:
    """A trace with every kind of count."""
    out: list[dict[str, Any]] = []
    total = {arm: np.zeros(7) for arm in ("stable", "canary")}
    for scrape in range(scrapes):
        versions = {}
        for arm, n, error, tail, mean in (("stable", 160, 0.005, 0.05, 0.7), ("canary", 40, canary, slow, reward)):
            m = rng.poisson(n)
            late = rng.binomial(m, tail)
            rewards = rng.binomial(1, mean, m // 2)
            total[arm] += [m, rng.binomial(m, error), (m - late) // 2, m - late, len(rewards), *[rewards.sum()] * 2]
            n_, e_, fast, usual, count, given, squares = total[arm]
            versions[arm] = {
                "requests": int(n_),
                "errors": int(e_),
                "latency_ms": {"50": int(fast), "250": int(usual), "+Inf": int(n_)},
                "reward_count": int(count),
                "reward_sum": float(given),
                "reward_sumsq": float(squares),
            }
        out.append({"t": scrape * FIVE, "versions": versions, "weights": {"stable": 80, "canary": 20}})
    return out


def write(path: Path, scrapes: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(scrape) + "\n" for scrape in scrapes), encoding="utf-8")
    return path


def replay(*args: str | Path) -> Any:
    return CliRunner().invoke(main, ["replay", "--traces", *map(str, args)])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [({}, "Healthy"), ({"canary": 0.2}, "Degraded"), ({"slow": 0.5}, "Degraded"), ({"reward": 0.2}, "Degraded")],
    ids=str,
)
def test_each_kind_of_count_decides(tmp_path: Path, change: dict[str, float], verdict: str) -> None:
    path = write(tmp_path / "a.jsonl", lines(np.random.default_rng(7), 240, **change))
    told = replay(path)
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert (found["trace"], found["verdict"]) == (str(path), verdict)
    assert 0 < found["at"] <= 1200


def test_what_is_not_there_is_not_judged(tmp_path: Path) -> None:
    slow = lines(np.random.default_rng(7), 240, slow=0.5, reward=0.1)
    for scrape in slow:
        for version in scrape["versions"].values():
            version.pop("latency_ms")
            version.pop("reward_count")
        scrape.pop("weights")
    assert json.loads(replay(write(tmp_path / "a.jsonl", slow)).stdout)["verdict"] == "Healthy"


@pytest.mark.parametrize("kind", ["errors", "latency_ms", "reward_"])
def test_one_kind_of_count_is_enough(tmp_path: Path, kind: str) -> None:
    scrapes = lines(np.random.default_rng(7), 240, canary=0.2, slow=0.5, reward=0.2)
    for scrape in scrapes:
        for version in scrape["versions"].values():
            for key in [key for key in version if not key.startswith(kind) and (kind, key) != ("errors", "requests")]:
                del version[key]
    path = write(tmp_path / "a.jsonl", scrapes)
    (guard,) = Options().settings(read(path)).guards
    assert kind.startswith(guard.kind)
    assert json.loads(replay(path).stdout)["verdict"] == "Degraded"


def test_a_canary_that_comes_later_has_had_no_requests_before(tmp_path: Path) -> None:
    scrapes = lines(np.random.default_rng(7), 240, canary=0.2)
    first = scrapes[0]["versions"]["canary"]
    for scrape in scrapes:
        scrape["t"] += 100 * FIVE
    none = dict.fromkeys(first, 0) | {"latency_ms": {}}
    before = [
        {
            "t": i * FIVE,
            "versions": {"stable": scrapes[0]["versions"]["stable"]},
            "weights": {"stable": 100, "canary": 0},
        }
        for i in range(100)
    ]
    told = [json.loads(replay(write(tmp_path / "a.jsonl", before + scrapes)).stdout)]
    for scrape in before:
        scrape["versions"]["canary"] = none
    told.append(json.loads(replay(write(tmp_path / "a.jsonl", before + scrapes)).stdout))
    assert told[0] == told[1]
    assert told[0]["verdict"] == "Degraded"
    assert told[0]["at"] > 100 * FIVE


def test_a_trace_may_come_by_stdin(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(np.random.default_rng(7), 240, canary=0.2))
    by_name = json.loads(replay(path).stdout)
    piped = CliRunner().invoke(main, ["replay", "--traces", "-"], input=path.read_bytes())
    assert json.loads(piped.stdout) == by_name | {"trace": "-"}


def test_side_by_side_is_as_one_by_one_and_as_the_operator_judges(tmp_path: Path) -> None:
    """The rows of a batch do not know of each other, and the operator's one row is the same judge."""
    rng = np.random.default_rng(8)
    paths = [
        write(tmp_path / f"{n}.jsonl", lines(rng, 60 + 7 * n, canary=0.01 * n, slow=0.05 + 0.02 * n)) for n in range(6)
    ]
    traces = [read(path) for path in paths]
    together = {outcome.trace: outcome for outcome in judge(traces, Options())}
    for trace in traces:
        (alone,) = judge([trace], Options())
        assert together[trace.path] == alone
        one = Judge(Options().settings(trace))
        first = None
        for line in range(1, len(trace.t)):
            both = []
            for arm in (0, 1):
                new = trace.requests[line, arm] - trace.requests[line - 1, arm]
                bad = trace.errors[line, arm] - trace.errors[line - 1, arm]
                slower = trace.latency[line, arm] - trace.latency[line - 1, arm]
                given = trace.rewards[line, arm] - trace.rewards[line - 1, arm]
                both.append(
                    (
                        Requests(int(new), int(bad), dict(zip(trace.edges, map(int, slower), strict=True))),
                        Rewards(int(given[0]), *map(float, given[1:])),
                    )
                )
            (stable, stable_rewards), (canary, canary_rewards) = both
            one.observe(FIVE, (stable, canary), (stable_rewards, canary_rewards), weight=20.0)
            one = Judge(one.settings, json.loads(json.dumps(one.dump())))
            verdict = one.report().verdict
            if verdict == "Degraded" or (first is None and verdict != "Undecided"):
                first = (verdict, float(trace.t[line]))
            if verdict == "Degraded":
                break
        assert (alone.verdict, alone.at) == (first or ("Undecided", None))


def test_a_reset_drops_the_window_for_both(tmp_path: Path) -> None:
    scrapes = lines(np.random.default_rng(9), 400)
    for scrape in scrapes[100:]:  # the canary's counters begin anew, full of errors from before
        before = scrapes[99]["versions"]["canary"]
        now = scrape["versions"]["canary"]
        now["requests"] -= before["requests"] - 5000
        now["latency_ms"]["+Inf"] -= before["latency_ms"]["+Inf"] - 5000
        now["errors"] += 4000
        now["requests"] -= 4000
    assert json.loads(replay(write(tmp_path / "a.jsonl", scrapes)).stdout)["verdict"] == "Healthy"


def scrape(t: float, n: int) -> dict[str, Any]:
    counts = {"requests": n, "errors": 0, "latency_ms": {"50": 3 * (n > 0), "+Inf": n}}
    counts |= {"reward_count": 3, "reward_sum": 2 * (n > 0), "reward_sumsq": 2 * (n > 0)}
    return {"t": t, "versions": {"canary": counts, "stable": counts}, "weights": {"stable": 80, "canary": 20}}


TWO = "".join(json.dumps(scrape(t, n)) + "\n" for t, n in ((0, 0), (5, 7)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        (
            '{"t": 0, "versions": {"v1": {}, "stable": {}}}\n',
            "line 1: the versions are stable, v1, not stable and canary",
        ),
        ('{"t": 0, "versions": {"stable": {"requests": 1, "errors": 0}}}\n', "no line has a version canary"),
        (
            TWO + json.dumps({"t": 9, "versions": {"stable": scrape(9, 9)["versions"]["stable"]}}),
            "line 3: there is no canary",
        ),
        (TWO.replace('"errors": 0, ', "", 1), "line 1: 'errors' is missing"),
        ('{"t": 0}\n', "line 1: 'versions' is missing"),
        ("nonsense\n", "line 1: not JSON (Expecting value"),
        (TWO[:-20], "line 2: not JSON"),
        ("\xff\n", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"t": 0, "versions": {"stable": {"requests": 1}, "canary": {"requests": 1}}}', "nothing to judge by"),
        (TWO.replace('"requests": 7', '"requests": "7"', 1), "line 2: requests of canary is '7'"),
        (TWO.replace('"requests": 7', '"requests": -7', 1), "line 2: requests of canary is -7"),
        (TWO.replace('"t": 5', '"t": -5'), "line 2: time goes back, from 0 to -5"),
        (TWO.replace('"+Inf": 7', '"+Inf": 1'), "line 2: counts of latency_ms must not fall"),
        (TWO.replace('"50": 3, ', ""), "line 2: the histogram has other edges"),
        (TWO.replace("+Inf", "100"), "the last"),
        (TWO.replace('"reward_sum": 2', '"reward_sum": 9'), "line 2: rewards must lie between 0 and 1"),
        ("[]\n", "line 1: "),
        (
            '{"t": 0, "versions": {"stable": {"requests": NaN, "errors": 0}, "canary": {"requests": 1, "errors": 0}}}',
            "no finite number",
        ),
    ],
)
def test_a_file_that_is_no_trace_is_told_and_the_others_are_answered(tmp_path: Path, text: str, told: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text, encoding="latin-1")
    good = write(tmp_path / "good.jsonl", lines(np.random.default_rng(7), 30))
    found = replay(bad, good)
    assert found.exit_code == 1
    assert json.loads(found.stdout)["trace"] == str(good)
    assert str(bad) in found.stderr
    assert told in found.stderr


@pytest.mark.parametrize("option", [["--alpha", "0"], ["--delta", "0"], ["--beta", "2"], ["--drop", "1.5"]])
def test_settings_that_cannot_be_judged_by_are_wrong_usage(tmp_path: Path, option: list[str]) -> None:
    found = replay(write(tmp_path / "a.jsonl", lines(np.random.default_rng(7), 3)), *option)
    assert found.exit_code == 2


def test_an_edge_that_no_response_is_counted_by_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(np.random.default_rng(7), 240, slow=0.5))
    assert json.loads(replay(path, "--edge", "200").stdout)["verdict"] == "Degraded"
    found = replay(path, "--edge", "251")
    assert found.exit_code == 1
    assert "251 ms or more, but by [50.0, 250.0]; give a lower --edge" in found.stderr


def test_settings_change_the_verdict(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(np.random.default_rng(7), 240, canary=0.05))
    assert json.loads(replay(path).stdout)["verdict"] == "Degraded"
    wide = replay(path, "--delta", "0.2", "--latency-delta", "0.2", "--drop", "0.2")
    assert json.loads(wide.stdout)["verdict"] == "Healthy"
