"""A model that fails on purpose: an HTTP server for end-to-end tests, of the standard library alone.

It answers the Open Inference Protocol (V2, REST) with a fixed output that names its version. Connections are kept
alive, and SIGTERM is followed by a drain, so that a pod that goes away as it should fails no request. The environment
says how it fails otherwise; see `Settings`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_BODY = 16 << 20
BUSY_SECONDS = 10.0  # how long requests in flight may take to finish once the port is closed


@dataclass(frozen=True)
class Settings:
    """How to fail; each by the environment variable of the same name in capitals.

    Attributes:
        port: where to listen.
        version: what the output names.
        tidegate_version: sent in the header Tidegate-Version; empty for no header.
        error_rate: share of inference requests that are answered 500, from 0 to 1.
        slow_rate: share of inference requests that are answered late, from 0 to 1.
        slow_ms: by how many milliseconds.
        startup_seconds: how long it waits before it listens.
        crash_on_start: exit at once with status 1.
        crash_after_requests: exit with status 1 upon this inference request, unanswered; 0 for never.
        crash_after_seconds: exit with status 1 so long after the start; 0 for never.
        drain_seconds: how long connections are still taken after SIGTERM.
        seed: of the draws that decide which requests fail or are late.
    """

    port: int = 8080
    version: str = "v0"
    tidegate_version: str = ""
    error_rate: float = 0.0
    slow_rate: float = 0.0
    slow_ms: float = 0.0
    startup_seconds: float = 0.0
    crash_on_start: bool = False
    crash_after_requests: int = 0
    crash_after_seconds: float = 0.0
    drain_seconds: float = 1.0
    seed: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the environment; a variable that is absent or empty has its default.

        Raises:
            ValueError: a variable is not of its type, or a rate is not within 0 to 1.
        """
        given: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            if value := environment.get(name.upper()):
                given[name] = bool(int(value)) if isinstance(default, bool) else type(default)(value)
        settings = cls(**given)
        if not (0 <= settings.error_rate <= 1 and 0 <= settings.slow_rate <= 1):
            raise ValueError("ERROR_RATE and SLOW_RATE must be from 0 to 1")
        return settings


@dataclass(frozen=True)
class Request:
    """What was asked, and whether the client wants the connection kept."""

    method: str
    path: str
    body: bytes
    keep_alive: bool


async def read_head(reader: asyncio.StreamReader) -> str | None:
    """The next request's first line and headers; None where the client has closed the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").removesuffix("\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None


async def read_request(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """The request that follows a head.

    Raises:
        ValueError: it is not HTTP as this server speaks it, or its body is larger than 16 MiB.
        asyncio.IncompleteReadError: the client has gone away halfway.
    """
    first, *lines = head.split("\r\n")
    method, path, protocol = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await read_chunks(reader)
    else:
        body = await reader.readexactly(checked(int(headers.get("content-length", "0"))))
    keep_alive = protocol == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return Request(method, path.partition("?")[0], body, keep_alive)


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, its trailers read over."""
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        checked(len(body) + size)
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return body


def checked(size: int) -> int:
    """The size of a body that is taken, in bytes."""
    if not 0 <= size <= MAX_BODY:
        raise ValueError(f"a body of {size} bytes is not taken")
    return size


class Server:
    """One process of the model."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.draining = False
        self.random = random.Random(settings.seed)
        self.inferences = 0
        self.busy: set[asyncio.Task[None]] = set()
        self.idle: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        """Listens until SIGTERM or SIGINT, then drains."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        if self.settings.crash_after_seconds:
            loop.call_later(self.settings.crash_after_seconds, crash, "CRASH_AFTER_SECONDS")
        if await happens(stop, self.settings.startup_seconds):
            return
        listener = await asyncio.start_server(self.serve, "0.0.0.0", self.settings.port, backlog=1024)  # noqa: S104
        print(f"listening on port {listener.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
        await stop.wait()
        # Proxies learn only now that this pod goes away. Until they have, requests come, on new connections and on idle
        # ones; each is answered, and its client told by `Connection: close` to go elsewhere.
        self.draining = True
        await asyncio.sleep(self.settings.drain_seconds)
        listener.close()
        for writer in self.idle:
            writer.close()
        if self.busy:
            await asyncio.wait(self.busy, timeout=BUSY_SECONDS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection, one after another."""
        task = asyncio.current_task()
        assert task is not None  # streams run this in a task
        try:
            keep_alive = True
            while keep_alive:
                self.idle.add(writer)
                head = await read_head(reader)
                self.idle.discard(writer)
                if head is None:
                    return
                self.busy.add(task)
                request = await read_request(head, reader, writer)
                status, content = await self.answer(request)
                keep_alive = request.keep_alive and not self.draining
                await self.send(writer, status, content, keep_alive, with_body=request.method != "HEAD")
                self.busy.discard(task)
        except ValueError as error:
            await self.send(writer, 400, {"error": f"the request cannot be read: {error}"}, keep_alive=False)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client is gone, or sends headers without end
        finally:
            self.idle.discard(writer)
            self.busy.discard(task)
            writer.close()

    async def answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Status and JSON for a request."""
        match request.path.strip("/").split("/"):
            case ["v2", "models", name, "infer"] | ["v2", "models", name, "versions", _, "infer"]:
                if request.method != "POST":
                    return 405, {"error": "expected POST"}
                return await self.infer(name, request.body)
            case ["v2", "health", "ready"]:
                return 503 if self.draining else 200, {"ready": not self.draining}
            case [""] | ["v2", "health", "live"]:
                return 200, {"live": True}
            case ["v2", "models", name, "ready"] | ["v2", "models", name, "versions", _, "ready"]:
                return 200, {"name": name, "ready": True}
        return 404, {"error": f"there is nothing at {request.path}"}

    async def infer(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """The fixed output, late or not at all as the settings say."""
        self.inferences += 1
        if self.inferences == self.settings.crash_after_requests:
            crash("CRASH_AFTER_REQUESTS")
        slow, fails = self.random.random(), self.random.random()  # always both, so that neither rate moves the other
        if slow < self.settings.slow_rate:
            await asyncio.sleep(self.settings.slow_ms / 1000)
        if fails < self.settings.error_rate:
            return 500, {"error": "failed on purpose"}
        output = {"name": "version", "shape": [1], "datatype": "BYTES", "data": [self.settings.version]}
        return 200, {
            "model_name": name,
            "model_version": self.settings.version,
            **request_id(body),
            "outputs": [output],
        }

    async def send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        content: Mapping[str, Any],
        keep_alive: bool,
        with_body: bool = True,
    ) -> None:
        """Writes one response."""
        body = json.dumps(content).encode()
        head = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Failed'}", "Content-Type: application/json"]
        head.append(f"Content-Length: {len(body)}")
        if self.settings.tidegate_version:
            head.append(f"Tidegate-Version: {self.settings.tidegate_version}")
        if not keep_alive:
            head.append("Connection: close")
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + body * with_body)
        await writer.drain()


def request_id(body: bytes) -> dict[str, str]:
    """The request's id, to be given back; the rest of the body is not looked at."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return {"id": content["id"]} if isinstance(content, dict) and isinstance(content.get("id"), str) else {}


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Waits so long at most for an event; whether it came."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def crash(why: str) -> None:
    """Ends the process as a crash would: nothing is finished, nothing is closed."""
    print(f"crashing: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> int:
    """Runs the server as the environment says; returns the exit status, 0 after a drain."""
    settings = Settings.read(os.environ)
    if settings.crash_on_start:
        crash("CRASH_ON_START")
    asyncio.run(Server(settings).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
