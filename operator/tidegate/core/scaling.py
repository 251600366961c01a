"""Replicas: from `spec.scaling` and a version's part in the traffic to the autoscaler's annotations.

They are set on the version's Revisions, not in its workload, since Knative carries them from a Revision to its
autoscaler: a change of scaling makes no new Revision and moves no traffic.
"""

from __future__ import annotations

import math

from tidegate.api.base import seconds
from tidegate.api.modeldeployment import Scaling

_PREFIX = "autoscaling.knative.dev/"


def autoscaling(scaling: Scaling, floor: int) -> dict[str, str]:
    """Annotations of a Revision that is to keep at least `floor` replicas."""
    return {
        _PREFIX + "min-scale": str(floor),
        _PREFIX + "max-scale": str(max(scaling.max, floor)),
        _PREFIX + "metric": scaling.metric,
        _PREFIX + "target": str(scaling.target),
        _PREFIX + "window": _whole_seconds(scaling.window),
        _PREFIX + "scale-to-zero-pod-retention-period": _whole_seconds(scaling.idle),
    }


def _whole_seconds(duration: str) -> str:
    return f"{math.ceil(seconds(duration))}s"


def replicas_for(weight: int, stable_replicas: int, scaling: Scaling) -> int:
    """Replicas that a candidate needs ready before it gets `weight` percent of the requests.

    Its share of the replicas that the stable version has, at least `scaling.initial`, at most `scaling.max`: traffic
    never arrives before capacity does.
    """
    share = math.ceil(stable_replicas * weight / 100)
    return min(max(scaling.initial, share), scaling.max)
