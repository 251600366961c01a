"""How many rewards the feedback service takes: `python -m hack.bench.feedback`.

The service is a process of its own with a store on this machine's disk; the clients share the machine with it, so a
figure is a floor of what the service can do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

CASES = ((1, 1), (16, 1), (64, 1), (256, 1), (8, 100), (8, 1000))
"""Connections, and items of each request (one: not a batch)."""


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """URL and process id of a running service."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("feedback", "--host", "127.0.0.1", "--port", str(port), "--data", str(folder), "--drain", "0")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tidegate", *options, "--log-level", "warning")
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as client:
            while True:
                with suppress(aiohttp.ClientConnectionError):
                    async with client.get(f"{url}/readyz"):
                        break
                await asyncio.sleep(0.05)
        yield url, process.pid
    finally:
        process.terminate()
        await process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


async def measure(url: str, connections: int, items: int, seconds: float) -> list[float]:
    """Durations of all requests that were answered, in seconds."""
    durations: list[float] = []
    end = time.perf_counter() + seconds

    async def send(client: aiohttp.ClientSession, sender: int) -> None:
        number = 0
        while (begun := time.perf_counter()) < end:
            batch = [
                {
                    "deployment": "shop/churn",
                    "version": f"v{n % 2}-1a2b3c4d",
                    "reward": 0.5,
                    "id": f"{connections}-{items}-{sender}-{number + n}",
                }
                for n in range(items)
            ]
            number += items
            body = json.dumps({"items": batch} if items > 1 else batch[0])
            async with client.post(f"{url}/v1/feedback", data=body) as answer:
                if answer.status != 200:
                    raise SystemExit(f"status {answer.status}: {await answer.text()}")
                await answer.read()
            durations.append(time.perf_counter() - begun)

    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as client:
        await asyncio.gather(*(send(client, sender) for sender in range(connections)))
    return durations


async def main(seconds: float, folder: Path | None) -> None:
    """Prints a table."""
    print(
        f"{'connections':>11} {'items':>6} {'requests/s':>11} {'items/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU %':>6}"
    )
    with tempfile.TemporaryDirectory(dir=folder) as store:
        async with service(Path(store)) as (url, pid):
            for connections, items in CASES:
                before, begun = cpu_seconds(pid), time.perf_counter()
                durations = await measure(url, connections, items, seconds)
                took = time.perf_counter() - begun
                cpu = 100 * (cpu_seconds(pid) - before) / took
                rate = len(durations) / took
                cuts = statistics.quantiles(durations, n=100)
                print(
                    f"{connections:>11} {items:>6} {rate:>11.0f} {rate * items:>9.0f} "
                    f"{cuts[49] * 1e3:>8.2f} {cuts[98] * 1e3:>8.2f} {cpu:>6.0f}"
                )
            print(f"memory afterwards: {memory(pid) / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="for each case")
    parser.add_argument("--folder", type=Path, help="where the store goes; the system's temporary folder if not given")
    chosen = parser.parse_args()
    asyncio.run(main(chosen.seconds, chosen.folder))
