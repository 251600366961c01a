"""Fetch models: called by KServe with pairs of a source URI and a destination directory."""

import os
import sys

from kserve_storage import Storage
from kserve_storage.logging import configure_logging


def main(arguments: list[str]) -> int:
    if not arguments or len(arguments) % 2:
        print("usage: fetch.py SOURCE DESTINATION [SOURCE DESTINATION ...]", file=sys.stderr)
        return 2
    configure_logging()
    sources, destinations = arguments[::2], arguments[1::2]
    for destination in destinations:
        os.makedirs(destination, exist_ok=True)
    Storage.download_files(sources, destinations)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
