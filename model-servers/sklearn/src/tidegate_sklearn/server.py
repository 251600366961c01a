"""The process: arguments, environment, the listening socket and a drain on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from prometheus_client import disable_created_metrics

import tidegate_sklearn
from tidegate_sklearn.app import App
from tidegate_sklearn.errors import LoadError
from tidegate_sklearn.model import load, trusted_types

log = logging.getLogger(__name__)

# A proxy keeps idle connections open for a while (Go's default is 90 s) and sends its next request on one. The server
# must be the one that waits longer, or a request now and then meets a connection that is just being closed.
_KEEP_ALIVE_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process was started with.

    Attributes:
        name: the model's name in the URL.
        directory: where the model's files are.
        port: the port to listen on; 0 lets the system choose.
        version: the version that answers name; None leaves it out.
        trusted: types that a skops file may build, by full name.
        max_body: the largest request body taken, in bytes.
        drain_seconds: how long connections are still taken after SIGTERM.
    """

    name: str
    directory: Path
    port: int
    version: str | None
    trusted: tuple[str, ...]
    max_body: int
    drain_seconds: float


def settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Reads command line and environment.

    Raises:
        SystemExit: an argument is not known, or a value is no good; the message went to standard error.
    """
    parser = argparse.ArgumentParser(prog="tidegate-sklearn", description=tidegate_sklearn.__doc__, allow_abbrev=False)
    parser.add_argument("--model_name", default="model", help="name in the URL; the last one given counts")
    parser.add_argument(
        "--model_dir", type=Path, default=Path("/mnt/models"), help="where model.joblib or model.skops is"
    )
    options = parser.parse_args(arguments)
    if not options.model_name or "/" in options.model_name:
        parser.error(f"--model_name must be one segment of a URL, not {options.model_name!r}")

    def number(name: str, default: float, largest: float) -> float:
        value = environment.get(name) or str(default)
        try:
            parsed = float(value)
        except ValueError:
            parsed = -1
        if not 0 <= parsed <= largest:
            parser.error(f"{name} must be a number from 0 to {largest:g}, not {value!r}")
        return parsed

    version = environment.get("TIDEGATE_VERSION") or None
    if version is not None and not (version.isascii() and version.isprintable()):
        parser.error(f"TIDEGATE_VERSION must be printable ASCII, not {version!r}: it is sent in a header")
    return Settings(
        name=options.model_name,
        directory=options.model_dir,
        port=int(number("PORT", 8080, 65535)),
        version=version,
        trusted=trusted_types(environment.get("TIDEGATE_SKOPS_TRUSTED", "")),
        max_body=int(number("TIDEGATE_MAX_BODY_BYTES", 16 << 20, 1 << 40)),
        drain_seconds=number("TIDEGATE_DRAIN_SECONDS", 1, 3600),
    )


class _Server(uvicorn.Server):
    """Drains in two steps: turn clients away politely, then close."""

    def __init__(self, config: uvicorn.Config, app: App, chosen: Settings) -> None:
        super().__init__(config)
        self._app, self._chosen = app, chosen

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("serving %r on port %d", self._chosen.name, self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The parent's handler raises the signal again after the drain, which makes the exit status that of a crash.
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Endpoints are taken out of proxies while SIGTERM is under way, so requests still arrive, on new connections
        # and on idle ones. They are answered, and their clients told to go elsewhere, before any socket is closed.
        self._app.draining = True
        log.info("draining for %g s", self._chosen.drain_seconds)
        await asyncio.sleep(self._chosen.drain_seconds)
        await super().shutdown(sockets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Loads the model, then serves it until SIGTERM or SIGINT.

    Args:
        arguments: the command line; None takes the process's own.

    Returns:
        The exit status: 0 after a drain, 1 if the model cannot be loaded.
    """
    start = time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # where it listens is said below
    # columns are put in the model's own order by name before it sees the bare matrix
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter, which no one asks for
    chosen = settings(sys.argv[1:] if arguments is None else arguments, os.environ)
    try:
        model = load(chosen.directory, chosen.trusted)
    except LoadError as error:
        log.error("%s", error)
        return 1
    app = App(
        model,
        chosen.name,
        version=chosen.version,
        load_seconds=time.perf_counter() - start,
        max_body=chosen.max_body,
    )
    config = uvicorn.Config(
        app,
        host="0.0.0.0",  # noqa: S104  # the one port of a container
        port=chosen.port,
        http="httptools",
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        headers=[("Tidegate-Version", chosen.version)] if chosen.version else [],
    )
    _Server(config, app, chosen).run()
    return 0
