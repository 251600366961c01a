"""The command `tidegate simulate`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.api.base import seconds
from tidegate.api.evidence import fraction

if TYPE_CHECKING:
    from tidegate.simulate.streams import Traffic


class Share(click.ParamType[float]):
    """A share of all responses, as 0.5% or 0.005."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads one."""
        try:
            share = fraction(value) if str(value).endswith("%") else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a share such as 0.5% or 0.005", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value} is not between 0% and 100%", param, ctx)
        return share


class Rate(click.ParamType[float]):
    """Requests per time, as 20/s, 20 or 1200/m."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads one, in requests per second."""
        match = re.fullmatch(r"([0-9.]+)(?:/(s|m|h))?", str(value))
        try:
            rate = float(match[1]) / {"s": 1, "m": 60, "h": 3600}[match[2] or "s"] if match else 0.0
        except ValueError:
            rate = 0.0
        if not 0 < rate <= 1e5:
            self.fail(f"{value!r} is not a rate such as 20/s, 30/m or 5/h, at most 100000/s", param, ctx)
        return rate


class Time(click.ParamType[float]):
    """A duration, as 90s, 10m or 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads one, in seconds."""
        try:
            return value if isinstance(value, float) else seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Regression(click.ParamType[Callable[[float], float]]):
    """How bad the candidate is: a multiple of the stable version's share, a share of its own, or all of it."""

    name = "regression"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Callable[[float], float]:
        """Reads one, as a function of the stable version's share."""
        if callable(value):
            return value  # type: ignore[no-any-return]
        if value == "total":
            return lambda share: 1.0
        if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)x", str(value)):
            times = float(match[1])
            return lambda share: min(times * share, 1.0)
        fixed = Share().convert(value, param, ctx)
        return lambda share: fixed


class Steps(click.ParamType[tuple[int, ...]]):
    """Weights in percent, as 1,5,10,25,50."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Reads them."""
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", str(value)):
            self.fail(f"{value!r} is not a list of weights such as 1,5,10,25,50", param, ctx)
        steps = tuple(int(step) for step in value.split(","))
        if list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < 100:
            self.fail("weights rise, and lie between 1 and 99: at 100 there is nothing to compare with", param, ctx)
        return steps


@click.command()
@click.option(
    "--base-error", type=Share(), default="0.5%", show_default=True, help="Share of errors of the stable version."
)
@click.option(
    "--rate", type=Rate(), default="20/s", show_default=True, help="Requests, of both versions: 20/s, 30/m or 5/h."
)
@click.option(
    "--regression",
    type=Regression(),
    default="3x",
    show_default=True,
    help="The bad candidate's errors: 3x those of the stable version, a share such as 20%, or total.",
)
@click.option(
    "--base-slow", type=Share(), help="Share of slow responses of the stable version. Given: latency is judged too."
)
@click.option(
    "--slow-regression", type=Regression(), default="1x", show_default=True, help="The bad candidate's slow responses."
)
@click.option(
    "--runs", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Rollouts to simulate."
)
@click.option(
    "--max-time", type=Time(), default="2h", show_default=True, help="A rollout that takes longer is undecided."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed: the same requests.")
@click.option(
    "--after", type=Time(), default="0s", show_default=True, help="The regression shows only after this time,"
)
@click.option(
    "--above", type=click.IntRange(0, 99), default=0, show_default=True, help="and only above this weight in percent."
)
@click.option(
    "--burst", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Errors come in bursts of so many."
)
@click.option(
    "--diurnal", type=Share(), default="0%", show_default=True, help="How far the rate swings in the course of a day."
)
@click.option(
    "--incident",
    type=Share(),
    default="0%",
    show_default=True,
    help="Errors of both versions in an incident that they share, of 3 minutes about twice an hour.",
)
@click.option(
    "--history", type=Time(), default="10m", show_default=True, help="For how long the stable version was counted."
)
@click.option(
    "--pace", type=click.Choice(["Eager", "Steady"]), default="Eager", show_default=True, help="As spec.rollout.pace."
)
@click.option("--steps", type=Steps(), help="Weights to use instead of those of --pace, such as 5,20,50.")
@click.option("--hold", type=Time(), help="For how long each weight is held at least. Default: that of --pace.")
@click.option(
    "--false-rollback", type=Share(), default="1%", show_default=True, help="As spec.rollout.risk.falseRollback."
)
@click.option(
    "--false-promotion", type=Share(), default="5%", show_default=True, help="As spec.rollout.risk.falsePromotion."
)
@click.option(
    "--bad-responses",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="As spec.rollout.risk.badResponses.",
)
@click.option(
    "--max-ratio", type=click.FloatRange(0), default=1.5, show_default=True, help="As guardrails[].errors.maxRatio."
)
@click.option(
    "--max-increase", type=Share(), default="0.5%", show_default=True, help="As guardrails[].errors.maxIncrease."
)
@click.option(
    "--success-rate", type=Share(), default="99%", show_default=True, help="What Flagger and Argo Rollouts check."
)
@click.option(
    "--slow-limit",
    type=Share(),
    help="Slow responses that they allow: 1% is a limit on the 99th percentile. Default: twice --base-slow.",
)
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots to this file.")
def simulate(html: Path | None, output: str, **given: Any) -> None:
    """Show how often rollouts would go wrong, how long they take and what they cost, beside the rules of others.

    A healthy candidate and a bad one are rolled out many times, on requests as yours are. All rules meet the same
    requests. Nothing is sent anywhere.
    """
    from tidegate.simulate import report  # numpy, which the other commands do without

    try:
        study = _study(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if html is not None:
        try:
            html.write_text(report.page(study), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"cannot write {html}: {error.strerror}; give --html another file") from error
        click.echo(f"wrote {html}", err=True)
    click.echo(report.as_json(study) if output == "json" else report.table(study))


def _study(given: dict[str, Any]) -> Any:
    from tidegate.core.rollout.guards import Guard
    from tidegate.core.rollout.weights import RAMPS, Ramp
    from tidegate.simulate import report, rules
    from tidegate.simulate.run import run
    from tidegate.simulate.streams import Traffic

    slow, ramp = given["base_slow"], RAMPS[given["pace"]]
    if given["steps"] or given["hold"] is not None:
        ramp = Ramp(given["steps"] or ramp.steps, ramp.hold if given["hold"] is None else given["hold"], ramp.doubt)
    errors = Guard.errors(rho=given["max_ratio"], delta=given["max_increase"])
    own = rules.Tidegate(
        ramp=ramp,
        guards=(errors,) if slow is None else (errors, Guard.latency()),
        alpha=given["false_rollback"],
        beta=given["false_promotion"],
        budget=given["bad_responses"],
    )
    limit = given["slow_limit"] if given["slow_limit"] is not None else 2 * (slow or 0.0)
    check = rules.Check(success=given["success_rate"], slow=None if slow is None else limit)

    def traffic(candidate: float, slow_candidate: float | None) -> Traffic:
        return Traffic(
            rate=given["rate"],
            base=given["base_error"],
            candidate=candidate,
            slow=slow,
            slow_candidate=slow_candidate,
            **{name: given[name] for name in ("after", "above", "burst", "diurnal", "incident")},
        )

    healthy = traffic(given["base_error"], slow)
    bad = traffic(given["regression"](healthy.base), None if slow is None else given["slow_regression"](slow))
    methods = (own, *rules.others(check))
    cases = []
    for i, case in enumerate((healthy, bad)):
        with _Progress(i, 2) as progress:
            results = run(
                case,
                methods,
                runs=given["runs"],
                max_time=given["max_time"],
                seed=given["seed"],
                history=given["history"],
                progress=progress,
            )
        cases.append(report.Case(case, tuple(results)))
    return report.Study(own, cases[0], cases[1], given["runs"], given["max_time"], given["seed"])


class _Progress:
    """Says on stderr how far it is, from the third second on."""

    def __init__(self, part: int, parts: int) -> None:
        self._part, self._parts = part, parts
        self._said = time.monotonic() + 1.0
        self._shown = False

    def __enter__(self) -> Callable[[float], None]:
        return self._tell

    def __exit__(self, *_: object) -> None:
        if self._shown and sys.stderr.isatty():
            click.echo("\r\033[K", err=True, nl=False)

    def _tell(self, share: float) -> None:
        now = time.monotonic()
        if now - self._said < 1.0:
            return
        self._said, self._shown = now, True
        text = f"{(self._part + share) / self._parts:.0%} of the rollouts are decided"
        click.echo(f"\r\033[K{text}" if sys.stderr.isatty() else text, err=True, nl=not sys.stderr.isatty())
