"""The command `tidegate replay`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tidegate.replay.traces import Options, Outcome

TOGETHER = 256
"""Traces that are judged side by side: enough to be fast, few enough to fit into memory."""


@click.command()
@click.option("--traces", is_flag=True, required=True, help="The files are traces of counts, one scrape a line.")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--alpha", default=0.01, show_default=True, help="Probability of a false Degraded, over all guardrails.")
@click.option("--beta", default=0.05, show_default=True, help="Probability of a false Healthy.")
@click.option("--rho", default=1.5, show_default=True, help="Errors: times the stable share that is allowed.")
@click.option("--delta", default=0.005, show_default=True, help="Errors: share that is allowed besides.")
@click.option("--latency-rho", default=1.25, show_default=True, help="Slow responses: times the stable share.")
@click.option("--latency-delta", default=0.01, show_default=True, help="Slow responses: share besides.")
@click.option("--edge", type=float, help="Milliseconds from which a response is slow. Default: chosen from stable.")
@click.option("--drop", default=0.03, show_default=True, help="Reward: how much lower the mean may be.")
def replay(traces: bool, files: tuple[Path, ...], **options: float | None) -> None:
    """Say what the judge makes of recorded counts: a JSON line for each file.

    A trace has a line for each scrape, with cumulative counts of both versions: {"t": seconds, "versions": {"stable":
    {"requests": n, "errors": n, "latency_ms": {"5": n, "+Inf": n}, "reward_count": n, "reward_sum": x, "reward_sumsq":
    x}, "canary": {...}}, "weights": {"stable": 95, "canary": 5}}. What is not there is not judged. A file that is no
    trace is told of on stderr; the others are answered, and the exit code is 1. The file - is stdin.
    """
    from tidegate.replay.traces import Options

    try:
        chosen = Options(**options)  # type: ignore[arg-type]
        _check(chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    parts = [files[start : start + TOGETHER] for start in range(0, len(files), TOGETHER)]
    if len(files) > 32 and (os.cpu_count() or 1) > 1:
        half = -(-len(files) // (os.cpu_count() or 1))
        parts = [files[start : start + min(TOGETHER, half)] for start in range(0, len(files), min(TOGETHER, half))]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(_part, parts, [chosen] * len(parts)))
    else:
        results = [_part(part, chosen) for part in parts]
    for outcomes, problems in results:
        for outcome in outcomes:
            click.echo(json.dumps(asdict(outcome)))
        for problem in problems:
            click.echo(f"Error: {problem}", err=True)
    if any(problems for _, problems in results):
        raise SystemExit(1)


def _check(options: Options) -> None:
    """`ValueError` for settings that cannot be judged by."""
    from tidegate.core.rollout.guards import Guard, Settings

    guards = (
        Guard.errors(rho=options.rho, delta=options.delta),
        Guard.latency(rho=options.latency_rho, delta=options.latency_delta, edge=options.edge),
        Guard.reward(drop=options.drop),
    )
    Settings(guards, alpha=options.alpha, beta=options.beta)


def _part(files: Sequence[Path], options: Options) -> tuple[list[Outcome], list[str]]:
    """Outcomes in the order of the files, and what was wrong with the others."""
    from tidegate.replay.traces import BadTrace, judge, read

    traces, problems = [], []
    for path in files:
        try:
            traces.append(read(path, options.edge))
        except BadTrace as error:
            problems.append(str(error))
    order = {str(path): index for index, path in enumerate(files)}
    return sorted(judge(traces, options), key=lambda outcome: order[outcome.trace]), problems
