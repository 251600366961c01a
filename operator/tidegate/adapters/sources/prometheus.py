"""Numbers from Prometheus, for guardrails that bring a query of their own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE = aiohttp.ClientTimeout(total=3.0)


@dataclass(frozen=True)
class Server:
    """How to reach Prometheus, or what speaks its API."""

    url: str = ""
    """Empty if there is none."""
    token_file: Path | None = None
    """File with a bearer token. Read again each time: tokens are renewed under way."""
    ca_file: Path | None = None
    """File with the certificates to trust, instead of the system's."""


class NoValue(Exception):
    """The query has no value now; the message says why."""


class Prometheus:
    """Asks queries."""

    def __init__(self, session: aiohttp.ClientSession, server: Server) -> None:
        self._session, self._server = session, server
        self._ssl: ssl.SSLContext | bool = True
        if server.ca_file:
            self._ssl = ssl.create_default_context(cafile=str(server.ca_file))

    async def value(self, promql: str) -> float:
        """The one number that a query has as its result. `NoValue` if it has none, or more than one."""
        if not self._server.url:
            raise NoValue("the operator knows of no Prometheus (prometheus.url of the chart)")
        try:
            headers = {}
            if self._server.token_file:
                headers["Authorization"] = f"Bearer {self._server.token_file.read_text().strip()}"
            async with self._session.post(
                self._server.url.rstrip("/") + "/api/v1/query",
                data={"query": promql, "timeout": "3s"},
                headers=headers,
                ssl=self._ssl,
                timeout=PATIENCE,
            ) as response:
                raw = await response.json(content_type=None)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoValue(f"Prometheus cannot be asked: {str(error) or 'no answer in time'}") from error
        except ValueError as error:
            raise NoValue("Prometheus answers with something that is not JSON") from error
        return read(status, raw)


def read(status: int, raw: Any) -> float:
    """The number in an answer. `NoValue` if there is none, or more than one, or one that is not finite."""
    if not isinstance(raw, dict) or raw.get("status") != "success":
        told = raw.get("error") if isinstance(raw, dict) else None
        raise NoValue(f"Prometheus refuses the query: {told or f'status {status}'}"[:512])
    data = raw.get("data") or {}
    found = data.get("result") or []
    if data.get("resultType") == "scalar":
        value = found[1]
    elif data.get("resultType") != "vector":
        raise NoValue(f"the query gives a {data.get('resultType')}; it has to give one number")
    elif len(found) != 1:
        raise NoValue(f"the query gives {len(found)} series; it has to give one number")
    else:
        value = found[0]["value"][1]
    number = float(value)
    if not isfinite(number):
        raise NoValue(f"the query gives {value}")
    return number
