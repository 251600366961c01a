"""Statistics of Envoy and KIngresses, as text and objects that a real cluster gave."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import quote

import pytest

from tidegate.core.rollout import envoy
from tidegate.core.rollout.counts import Requests
from tidegate.core.rollout.envoy import Garbage, read
from tidegate.core.rollout.ingress import Routes, Settling, parse, routes

# Envoy 1.40 of Kourier, after 40 requests of users and 8 probes; most buckets left out
TEXT = """\
# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="shop/churn-v1-9dbeef46-00001"} 46
envoy_cluster_upstream_rq{envoy_response_code="500",envoy_cluster_name="shop/churn-v1-9dbeef46-00001"} 2
# TYPE envoy_cluster_membership_total gauge
envoy_cluster_membership_total{envoy_cluster_name="shop/churn-v1-9dbeef46-00001"} 1
envoy_cluster_membership_total{envoy_cluster_name="shop/churn-v2-0a1b2c3d-00001"} 2
# TYPE envoy_server_live gauge
envoy_server_live{} 1
# TYPE envoy_server_uptime gauge
envoy_server_uptime{} 440
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="shop/churn-v1-9dbeef46-00001",le="0.5"} 4
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="shop/churn-v1-9dbeef46-00001",le="100"} 47
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="shop/churn-v1-9dbeef46-00001",le="+Inf"} 48
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="shop/churn-v1-9dbeef46-00001"} 575.67791930846715331426821649075
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="shop/churn-v1-9dbeef46-00001"} 48
"""
V1, V2 = "shop/churn-v1-9dbeef46-00001", "shop/churn-v2-0a1b2c3d-00001"


def test_counts_of_each_cluster() -> None:
    scrape = read(TEXT)
    assert scrape.uptime == 440
    assert scrape.clusters == {
        V1: Requests(48, 2, {0.5: 4, 100.0: 47, math.inf: 48}),
        V2: Requests(),
    }


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (TEXT, "", "nothing"),
        (TEXT, "<html>no such page</html>\n", "not Envoy's statistics"),
        ("} 46\n", "} NaN\n", "NaN is not a count"),
        ("} 46\n", "} -46\n", "-46 is not a count"),
        ("} 46\n", "} 4.5\n", "4.5 is not a count"),
        ("} 46\n", "} many\n", "'many' is not a number"),
        ("envoy_server_live{} 1", "envoy_server_live{} 0", "does not say that it is live"),
        ("envoy_server_uptime{} 440\n", "", "does not say that it is live"),
        ('envoy_response_code="200",', "", "other labels"),
        ('le="+Inf"', 'le="most"', "other labels"),
        ('00001"} 48\n', '00001"} 4', "in the middle of a line"),
    ],
)
def test_what_is_not_whole_is_no_count(old: str, new: str, told: str) -> None:
    assert old in TEXT
    with pytest.raises(Garbage, match=told):
        read(TEXT.replace(old, new))


def test_zero_traffic_is_zero_and_not_trouble() -> None:
    text = "envoy_server_live{} 1\nenvoy_server_uptime{} 3\n"
    assert read(text).clusters == {}
    edges = envoy.edges_of([read(text).clusters])
    assert envoy.total([], edges) == Requests()


def test_pods_are_added_up_and_one_without_a_histogram_has_timed_nothing() -> None:
    one, other = Requests(10, 1, {5.0: 8, math.inf: 10}), Requests(3, 3)
    edges = envoy.edges_of([{V1: one}, {V1: other}])
    assert envoy.total([one, other, one], edges) == Requests(23, 5, {5.0: 16, math.inf: 20})
    with pytest.raises(Garbage, match="different buckets"):
        envoy.edges_of([{V1: one}, {V1: Requests(1, 0, {7.0: 1, math.inf: 1})}])


def test_selection_takes_what_is_wanted_and_nothing_of_others() -> None:
    chosen = re.compile(envoy.selection([V1, "a/b.c"]))
    for name in ("upstream_rq_200", "upstream_rq_503", "upstream_rq_time", "membership_total"):
        assert chosen.search(f"cluster.{V1}.{name}")
    assert chosen.search("server.uptime")
    for name in (
        f"cluster.{V1}.upstream_rq_2xx",
        f"cluster.{V1}.upstream_rq_total",
        f"cluster.{V1}.external.upstream_rq_200",
        f"cluster.{V1}.retry.upstream_rq_503",
        f"cluster.{V1}0.upstream_rq_200",
        f"cluster.x{V1}.upstream_rq_200",
        "cluster.a/bxc.upstream_rq_200",
    ):
        assert not chosen.search(name), name


def test_many_revisions_are_asked_for_in_parts_that_fit_a_url() -> None:
    wanted = {
        n: {f"team-{n % 50}/recommender-{n:04d}-v{v}-9dbeef46-predictor-00001" for v in (1, 2)} for n in range(1000)
    }
    parts = list(envoy.portions(wanted))
    assert [n for part in parts for n in part] == list(wanted)
    lengths = [len(quote(envoy.selection(c for n in part for c in wanted[n]), safe="")) for part in parts]
    assert max(lengths) < 30_000
    assert len(parts) < 10


# --- KIngresses -------------------------------------------------------------------------------------------------------


def kingress(name: str, *revisions: str, uid: str = "u1", version: str = "7", **status: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T08:16:56Z"} | status
    observed = condition.pop("observed", 3)
    return {
        "metadata": {
            "name": name,
            "uid": uid,
            "resourceVersion": version,
            "generation": 3,
            "creationTimestamp": "2026-11-24T08:16:55Z",
        },
        "spec": {"rules": [{"http": {"paths": [{"splits": [{"serviceName": r, "percent": 1} for r in revisions]}]}}]},
        "status": {"observedGeneration": observed, "conditions": [condition]},
    }


def test_ready_at_the_present_generation() -> None:
    assert parse(kingress("churn", "r1")).ready
    assert not parse(kingress("churn", "r1", status="Unknown")).ready
    assert not parse(kingress("churn", "r1", observed=2)).ready
    assert not parse({**kingress("churn", "r1"), "status": {}}).ready


def test_only_those_over_the_revisions_matter() -> None:
    other = parse(kingress("other", "r9", status="False"))
    mine = parse(kingress("churn", "r1", "r9x"))
    found = routes([other, mine], ["r1", "r2"])
    assert (found.trouble, found.token, found.routed) == ("", "u1@7", frozenset({"r1"}))
    assert found.since == 1795508216.0
    own = parse(kingress("r2-own", "r2", uid="u2", status="Unknown"))
    assert "r2-own" in routes([mine, own], ["r1", "r2"]).trouble


@pytest.mark.parametrize("change", [{"version": "8"}, {"uid": "u9"}])
def test_any_change_makes_another_token(change: dict[str, str]) -> None:
    before, after = (routes([parse(kingress("churn", "r1", **c))], ["r1"]) for c in ({}, change))
    assert before.token != after.token


def test_times_are_known_once_every_pod_has_merged_its_histograms() -> None:
    settling: Settling[str] = Settling()
    new = Routes("a", since=1000.0)
    assert not settling.settled("churn", new, {"p": 440, "q": 10}, 1003.0)
    assert not settling.settled("churn", new, {"p": 445, "q": 10}, 1008.0), "q has not"
    assert settling.settled("churn", new, {"p": 450, "q": 15}, 1013.0)
    assert settling.settled("churn", new, {"p": 450, "q": 15, "r": 0}, 1014.0), "no probes since"
    changed = Routes("b", since=1020.0)
    assert not settling.settled("churn", changed, {"p": 450}, 1021.0)
    assert settling.settled("churn", changed, {"p": 455}, 1026.0)


def test_an_operator_that_starts_takes_routes_that_have_long_been_ready_as_they_are() -> None:
    settling: Settling[str] = Settling()
    assert settling.settled("churn", Routes("a", since=1000.0), {"p": 440}, 1061.0)
    settling.keep([])
    assert not settling.settled("churn", Routes("a", since=1000.0), {"p": 440}, 1059.0)


def test_increments_without_times_are_increments_still() -> None:
    before, after = Requests(10, 1), Requests(15, 2, {5.0: 9, math.inf: 15})
    assert after.since(before) == Requests(5, 1)
    assert before.since(before) == Requests()
    assert Requests(20, 2).since(after) == Requests(5, 0)
    assert Requests(20, 2, {7.0: 1, math.inf: 15}).since(after) is None, "other edges"
