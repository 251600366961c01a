"""The command `tidegate replay`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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
@click.argument("files", metavar="LEDGER...", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--policy",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="YAML with other settings: a ModelDeployment, its spec.rollout, or what is below that.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--traces", is_flag=True, help="The files are traces of counts; the options that follow are for those.")
@click.option("--alpha", default=0.01, show_default=True, help="Probability of a false Degraded, over all guardrails.")
@click.option("--beta", default=0.05, show_default=True, help="Probability of a false Healthy.")
@click.option("--rho", default=1.5, show_default=True, help="Errors: times the stable share that is allowed.")
@click.option("--delta", default=0.005, show_default=True, help="Errors: share that is allowed besides.")
@click.option("--latency-rho", default=1.25, show_default=True, help="Slow responses: times the stable share.")
@click.option("--latency-delta", default=0.01, show_default=True, help="Slow responses: share besides.")
@click.option("--edge", type=float, help="Milliseconds from which a response is slow. Default: chosen from stable.")
@click.option("--drop", default=0.03, show_default=True, help="Reward: how much lower the mean may be.")
@click.pass_context
def replay(
    context: click.Context,
    /,
    files: tuple[Path, ...],
    policy: Path | None,
    output: str,
    traces: bool,
    **options: float | None,
) -> None:
    """Say what was decided about rollouts, whether the same comes of it again, and what other settings would have said.

    A ledger is what `tidegate ledger NAME` prints, or a file of the folder that `tidegate run --ledger` keeps; the file
    - is stdin. The exit code is 1 if a line comes out otherwise than it was recorded, with the first one that does, or
    if a file cannot be read.

    Other settings (--policy) see the counts that there were, of the weights that were really given. So what is said is
    what they would have concluded from these counts, and when; not which weights they would have given, nor what would
    have come of those.

    With --traces, a JSON line for each file tells what the judge makes of recorded counts. A trace has a line for each
    scrape, with cumulative counts of both versions: {"t": seconds, "versions": {"stable": {"requests": n, "errors": n,
    "latency_ms": {"5": n, "+Inf": n}, "reward_count": n, "reward_sum": x, "reward_sumsq": x}, "canary": {...}},
    "weights": {"stable": 95, "canary": 5}}. What is not there is not judged. A file that is no trace is told of on
    stderr; the others are answered, and the exit code is 1.
    """
    given = [name for name in (*options, "policy", "output") if _is_given(context, name)]
    wrong = [name for name in given if (name in options) != traces]
    if wrong:
        word = f"--{wrong[0].replace('_', '-')}"
        raise click.UsageError(f"{word} is for {'ledgers' if traces else 'traces: give --traces'}")
    if traces:
        _traces(files, options)
    else:
        _ledgers(files, policy, output)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


# --- ledgers ----------------------------------------------------------------------------------------------------------


def _ledgers(files: Sequence[Path], policy: Path | None, output: str) -> None:
    from tidegate.replay.ledger import BadLedger, read, replay
    from tidegate.replay.policy import BadPolicy
    from tidegate.replay.policy import read as read_policy
    from tidegate.replay.told import as_json, as_text

    try:
        other = read_policy(policy) if policy else None
    except BadPolicy as error:
        raise click.ClickException(str(error)) from error
    well = True
    for path in files:
        try:
            ledger = read(path)
            for left_out in ledger.left_out:
                click.echo(left_out, err=True)
            if not ledger.rollouts:
                click.echo(f"{path}: no rollout in it", err=True)
            for chain in ledger.rollouts:
                outcome = replay(chain, other)
                well = well and not outcome.differs
                click.echo(as_json(outcome) if output == "json" else "\n".join(as_text(outcome)))
        except BadLedger as error:
            click.echo(f"Error: {error}", err=True)
            well = False
    if not well:
        raise SystemExit(1)


# --- traces -----------------------------------------------------------------------------------------------------------


def _traces(files: Sequence[Path], options: Mapping[str, float | None]) -> None:
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
