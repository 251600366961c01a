"""Host ports: which ones a cluster has, and whether they are free before one is created."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping

from . import files
from .settings import PORT_DEFAULTS, PORT_VARIABLES, Settings
from .steps import Problem

HOST = "127.0.0.1"
NODE_PORTS = {"http": 31080, "prometheus": 31090, "s3": 31900}  # where the node listens for each


def choose(asked: Mapping[str, int], recorded: Mapping[str, int] | None) -> dict[str, int]:
    """The ports to use: a cluster's own if there is one, else those asked for, else the defaults."""
    if recorded is None:
        chosen = {**PORT_DEFAULTS, **asked}
        if len(set(chosen.values())) < len(chosen):
            variables = ", ".join(f"{PORT_VARIABLES[name]}={port}" for name, port in chosen.items())
            raise Problem(f"two of the host ports are the same: {variables}", "choose different ones")
        return chosen
    for name, port in asked.items():
        if recorded.get(name) != port:
            raise Problem(
                f"{PORT_VARIABLES[name]}={port}, but the cluster was created with {recorded.get(name)}",
                "leave the variable out, or run `make down` first",
            )
    return dict(recorded)


def recorded(settings: Settings) -> dict[str, int] | None:
    try:
        ports: dict[str, int] = json.loads((settings.cluster_dir / "ports.json").read_text())
    except FileNotFoundError:
        return None
    return ports


def record(settings: Settings, ports: Mapping[str, int]) -> None:
    files.write(settings.cluster_dir / "ports.json", json.dumps(dict(ports)))


def check_free(ports: Mapping[str, int]) -> None:
    for name, port in ports.items():
        with socket.socket() as probe:
            # as servers do: a connection that is still closing is no hindrance
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise Problem(
                    f"host port {port} (for {name}) cannot be had: {error.strerror}",
                    f"end what listens there (ss -ltnp 'sport = :{port}'), or choose another: {PORT_VARIABLES[name]}=…",
                ) from None
