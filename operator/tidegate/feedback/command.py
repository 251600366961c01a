"""The command `tidegate feedback`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from tidegate.feedback.limits import Limits
from tidegate.runtime.process import log_to_stderr, until_told

_DEFAULT = Limits()


@click.command()
@click.option("--port", default=8080, show_default=True, help="Port of the service, of /healthz, /readyz and /metrics.")
@click.option("--host", default="", help="Address to listen on. Default: all.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the counters. It must outlive the process; one process at a time.",
)
@click.option(
    "--max-deployments",
    type=click.IntRange(1, 10_000),
    default=_DEFAULT.deployments,
    show_default=True,
    help="ModelDeployments with counters.",
)
@click.option(
    "--max-versions",
    type=click.IntRange(1, 1000),
    default=_DEFAULT.versions,
    show_default=True,
    help="Versions of each ModelDeployment with counters.",
)
@click.option(
    "--max-ids",
    type=click.IntRange(0, 10_000_000),
    default=_DEFAULT.ids,
    show_default=True,
    help="Latest ids of each ModelDeployment that are remembered, at about 100 bytes each.",
)
@click.option(
    "--forget-after",
    type=click.IntRange(1),
    default=_DEFAULT.forget_after // 86_400,
    show_default=True,
    help="Days without a reward after which a version makes room for a new one, where there is no more.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024, 16 << 20),
    default=_DEFAULT.body,
    show_default=True,
    help="Bytes of a request.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 100_000),
    default=_DEFAULT.batch,
    show_default=True,
    help="Items of a request.",
)
@click.option(
    "--compact-at",
    type=click.IntRange(4096),
    default=8 << 20,
    show_default=True,
    help="Bytes of log at which a snapshot takes their place.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0, 600),
    default=3.0,
    show_default=True,
    help="Seconds after SIGTERM for which requests are still answered.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def feedback(
    port: int,
    host: str,
    data: Path,
    max_deployments: int,
    max_versions: int,
    max_ids: int,
    forget_after: int,
    max_body: int,
    max_batch: int,
    compact_at: int,
    drain: float,
    log_level: str,
) -> None:
    """Run the service that counts the rewards users give to responses."""
    from tidegate.feedback import service  # not needed for the other commands
    from tidegate.feedback.journal import StoreError

    log_to_stderr(log_level)
    limits = Limits(max_deployments, max_versions, max_ids, forget_after * 86_400, max_body, max_batch)
    options = service.Options(data, port, host, limits, compact_at, drain)

    try:
        asyncio.run(until_told(lambda stop: service.run(options, stop)))
    except (StoreError, OSError) as error:
        raise click.ClickException(str(error)) from error
