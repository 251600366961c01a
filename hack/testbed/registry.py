"""Whether a container registry can be reached: asked once, quickly, and said in one line."""

from __future__ import annotations

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from .versions import pinned

PATIENCE = 4.0  # seconds


def _answers(url: str) -> bool:
    """A registry greets with 200, or with 401 and how to log in; anything else is not one."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  the addresses are pinned in versions.toml
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401 and "www-authenticate" in {name.lower() for name in error.headers}
    except (OSError, ValueError):
        return False


def reachable() -> bool:
    probes = pinned().registry_probes
    with ThreadPoolExecutor(len(probes)) as pool:
        return all(pool.map(_answers, probes))
