"""The testbed's command line: `python -m hack.testbed up`, and what `make` calls."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from . import commands
from .steps import PROCESSES, Problem, tail

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": commands.up,
    "down": commands.down,
    "deploy": commands.deploy,
    "status": commands.status,
    "env": commands.env,
    "dump": commands.dump,
    "clean-cache": commands.clean_cache,
}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hack.testbed", description="A real cluster to develop and test on."
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--json", action="store_true", help="with env and status: print JSON")
    parser.add_argument("--to", help="with dump: the folder to write to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        result = COMMANDS[options.command](options)
        sys.stdout.flush()
        return result
    except Problem as problem:
        print(f"\nfailed: {problem.what}", file=sys.stderr)
        if problem.log:
            if text := tail(problem.log):
                print("\n".join(f"  | {line}" for line in text.splitlines()), file=sys.stderr)
            print(f"log:    {problem.log}", file=sys.stderr)
        if problem.advice:
            print(f"next:   {problem.advice}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        PROCESSES.stop()
        deadline = time.monotonic() + 5  # for the steps to clear away what is half done
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        print(f"\ninterrupted; `make {options.command}` goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
