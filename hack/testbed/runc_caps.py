#!/usr/bin/python3
"""runc, without the one capability that this host cannot give.

Docker asks for every capability on behalf of a privileged container, and runc refuses as a whole when the host's own
bounding set lacks one of them. Some sandboxes lack CAP_SYS_RESOURCE; so it is taken out of what Docker asks for, and
the resource limits that would need it with it. Stands alone: dockerd starts it from a copy in the cache.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

CAPABILITY, BIT = "CAP_SYS_RESOURCE", 24


def bounded() -> bool:
    """Whether this host lacks the capability."""
    with open("/proc/self/status") as status:
        mask = next(line.split()[1] for line in status if line.startswith("CapBnd"))
    return not int(mask, 16) & (1 << BIT)


def option(arguments: list[str], *names: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument in names:
            return arguments[position + 1]
        for name in names:
            if argument.startswith(name + "="):
                return argument.partition("=")[2]
    return None


def strip(path: str, find: Callable[[Any], Any]) -> None:
    with open(path) as file:
        spec = json.load(file)
    process = find(spec)
    sets = process.get("capabilities") or {}
    for name, granted in sets.items():
        sets[name] = [capability for capability in granted if capability != CAPABILITY]
    process.pop("rlimits", None)
    with open(path, "w") as file:
        json.dump(spec, file)


def main(arguments: list[str]) -> None:
    if bounded():
        process = option(arguments, "--process", "-p")
        if "create" in arguments or "run" in arguments:
            bundle = option(arguments, "--bundle", "-b") or "."
            strip(os.path.join(bundle, "config.json"), lambda spec: spec["process"])
        elif "exec" in arguments and process:
            strip(process, lambda spec: spec)
    os.execvp("/usr/sbin/runc", ["runc", *arguments])  # noqa: S606  becoming runc is the point


if __name__ == "__main__":
    main(sys.argv[1:])
