"""The command line: `tidegate run` is the operator; the other commands look at ModelDeployments and act on them.

Exit codes: 0 done; 1 refused or failed, with the reason; 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from tidegate import __version__
from tidegate.api import API_VERSION, crds
from tidegate.api.base import amount
from tidegate.api.modeldeployment import REQUEST_ANNOTATION
from tidegate.feedback.command import feedback
from tidegate.replay.command import replay
from tidegate.runtime.process import log_to_stderr, until_told
from tidegate.simulate.command import simulate

Command = TypeVar("Command", bound=Callable[..., Any])
Object = Mapping[str, Any]


class Failed(click.ClickException):
    """The command could not be carried out; exits with 1."""


class Size(click.ParamType[int]):
    """A quantity of bytes, as Kubernetes writes it."""

    name = "quantity"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; wrong usage if it is none, or less than a ledger needs."""
        try:
            size = int(amount(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return size if size >= 1 << 20 else self.fail(f"{value} is less than 1Mi", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tidegate")
def main() -> None:
    """Serverless model inference on Kubernetes."""


main.add_command(feedback)
main.add_command(simulate)
main.add_command(replay)


# --- the operator -----------------------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--namespace", "namespaces", multiple=True, help="Look after this namespace only; may be repeated. Default: all."
)
@click.option("--port", default=8080, show_default=True, help="Port of /healthz, /readyz and /metrics.")
@click.option(
    "--leader-elect/--no-leader-elect", default=True, show_default=True, help="Act only while holding the lease."
)
@click.option("--lease-namespace", default="tidegate-system", show_default=True, help="Namespace of the lease.")
@click.option(
    "--gateway-namespace", default="kourier-system", show_default=True, help="Namespace of the gateway's Envoy pods."
)
@click.option(
    "--gateway-selector", default="app=3scale-kourier-gateway", show_default=True, help="Labels of these pods."
)
@click.option("--gateway-port", default=9000, show_default=True, help="Port of Envoy's statistics.")
@click.option("--feedback-url", envvar="TIDEGATE_FEEDBACK_URL", default="", help="Where `tidegate feedback` answers.")
@click.option(
    "--prometheus-url", envvar="TIDEGATE_PROMETHEUS_URL", default="", help="Where guardrails' queries are asked."
)
@click.option(
    "--prometheus-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with a bearer token for it; read anew each time.",
)
@click.option(
    "--prometheus-ca-file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="File with the certificates to trust for it. Default: the system's.",
)
@click.option("--prometheus-timeout", default=3.0, show_default=True, help="Seconds that a query may take.")
@click.option(
    "--counts-from",
    type=click.Choice(["gateway", "prometheus"]),
    default="gateway",
    show_default=True,
    help="Ask the gateway's pods for the counts of requests, or Prometheus, which scrapes them.",
)
@click.option(
    "--prometheus-scrape-interval", default=15.0, show_default=True, help="Seconds between its scrapes of the gateway."
)
@click.option(
    "--prometheus-matchers",
    default='namespace="kourier-system"',
    show_default=True,
    help="Matchers that choose the gateway's pods, each once, among all Envoys that it scrapes.",
)
@click.option(
    "--prometheus-counters",
    type=(str, str, str, str),
    metavar="TARGETS REQUESTS ERRORS LATENCY",
    help="Selectors of the counters of another gateway, with {namespace} and {revision}; LATENCY may be empty.",
)
@click.option(
    "--ledger",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to keep the ledger of decisions in, for one operator at a time. Default: none is kept.",
)
@click.option(
    "--ledger-size",
    type=Size(),
    default="1Gi",
    show_default=True,
    help="Room for it. Nine tenths are used; then the files that were not written to for the longest time go.",
)
@click.option("--kubeconfig", help="Kubeconfig file. Default: the pod's own account, else $KUBECONFIG.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def run(
    namespaces: tuple[str, ...],
    port: int,
    leader_elect: bool,
    lease_namespace: str,
    gateway_namespace: str,
    gateway_selector: str,
    gateway_port: int,
    feedback_url: str,
    prometheus_url: str,
    prometheus_token_file: Path | None,
    prometheus_ca_file: Path | None,
    prometheus_timeout: float,
    counts_from: str,
    prometheus_scrape_interval: float,
    prometheus_matchers: str,
    prometheus_counters: tuple[str, str, str, str] | None,
    ledger: Path | None,
    ledger_size: int,
    kubeconfig: str | None,
    log_level: str,
) -> None:
    """Run the operator."""
    if kubeconfig:
        os.environ["KUBECONFIG"] = kubeconfig  # kopf and the client look there, the client once: as it is imported
    from tidegate.adapters import app  # the operator's imports are heavy, and the other commands do without
    from tidegate.adapters.api import ApiError
    from tidegate.adapters.ledger import Limits
    from tidegate.adapters.sources.gateway import Where
    from tidegate.adapters.sources.prometheus import Server
    from tidegate.core.rollout.series import Counters

    if counts_from == "prometheus" and not prometheus_url:
        raise click.UsageError("--counts-from prometheus needs --prometheus-url")
    counters = Counters(*prometheus_counters) if prometheus_counters else None
    log_to_stderr(log_level)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    options = app.Options(
        namespaces,
        port,
        leader_elect,
        lease_namespace,
        Where(gateway_namespace, gateway_selector, gateway_port),
        feedback_url,
        Server(
            prometheus_url,
            prometheus_token_file,
            prometheus_ca_file,
            prometheus_timeout,
            prometheus_scrape_interval,
            prometheus_matchers,
            counters,
        ),
        counts_from_prometheus=counts_from == "prometheus",
        ledger=ledger,
        ledger_limits=Limits(total=ledger_size * 9 // 10),
    )

    try:
        asyncio.run(until_told(lambda stop: app.run(options, stop)))
    except (ApiError, app.LeadershipLost) as error:
        raise Failed(str(error)) from error


@main.command(name="crds")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write one file for each CRD into this folder instead of printing them.",
)
def write_crds(output: Path | None) -> None:
    """Print the CustomResourceDefinitions, generated from the types."""
    for name, text in crds.files().items():
        if output is None:
            click.echo(f"---\n{text}", nl=False)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text, encoding="utf-8")
            click.echo(f"wrote {output / name}")


# --- looking ----------------------------------------------------------------------------------------------------------

_cluster_options: Sequence[Callable[[Any], Any]] = (
    click.option("-n", "--namespace", help="Namespace. Default: that of the kubeconfig's context."),
    click.option("--kubeconfig", help="Kubeconfig file. Default: $KUBECONFIG, else ~/.kube/config."),
    click.option("--context", help="Context of the kubeconfig. Default: its current one."),
)


def cluster_options(command: Command) -> Command:
    """The options that say which cluster and namespace."""
    for option in reversed(_cluster_options):
        command = option(command)
    return command


@main.command()
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="Those of every namespace.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("-w", "--watch", is_flag=True, help="Show it again whenever it changes, until Ctrl-C.")
@cluster_options
def get(
    name: str | None,
    all_namespaces: bool,
    output: str,
    watch: bool,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Show one ModelDeployment with its versions, or list them."""

    async def show(api: Any) -> None:
        where = "" if all_namespaces else f"/namespaces/{namespace or _default_namespace(kubeconfig, context)}"
        shown = None
        while True:
            found = await _fetch(api, where, name)
            text = json.dumps(found, indent=2) if output == "json" else "\n".join(_table(found))
            if text != shown:
                if watch and output == "table" and sys.stdout.isatty():
                    click.clear()
                click.echo(text)
                shown = text
            if not watch:
                return
            await asyncio.sleep(1)

    if name and all_namespaces:
        raise click.UsageError("give a name or --all-namespaces, not both")
    try:
        _with_cluster(kubeconfig, context, show)
    except KeyboardInterrupt:
        if not watch:
            raise


async def _fetch(api: Any, where: str, name: str | None) -> Any:
    base = f"/apis/{API_VERSION}{where}/modeldeployments"
    return await _one(api, f"{base}/{name}") if name else (await api.call("GET", base))["items"]


async def _one(api: Any, path: str) -> Any:
    found = await api.get(path)
    if found is None:
        *_, namespace, _, name = path.split("/")
        raise Failed(f"no ModelDeployment {name} in namespace {namespace}; `tidegate get -A` lists all")
    return found


def _table(found: Any) -> Iterator[str]:
    if isinstance(found, list):
        rows = [("NAMESPACE", "NAME", "READY", "STABLE", "CANDIDATE", "WEIGHT", "VERDICT", "URL")]
        for item in found:
            status = item.get("status", {})
            rows.append(
                (
                    item["metadata"]["namespace"],
                    item["metadata"]["name"],
                    _conditions(item).get("Ready", {}).get("status", "Unknown"),
                    status.get("stable", "-"),
                    status.get("candidate", "-"),
                    f"{status['weight']}%" if "weight" in status else "-",
                    status.get("verdict", "-"),
                    status.get("url", "-"),
                )
            )
        yield from _aligned(rows) if found else ["no ModelDeployments"]
        return
    status = found.get("status", {})
    yield f"{found['metadata']['namespace']}/{found['metadata']['name']}  {status.get('url', '(no URL yet)')}"
    if found["metadata"].get("generation") != status.get("observedGeneration"):
        yield "the operator has not yet looked at the newest spec; what follows is about an earlier one"
    yield ""
    versions = [("VERSION", "ID", "ROLE", "WEIGHT", "REVISION")]
    versions += [
        (v["name"], v["id"], v["role"], f"{v.get('weight', 0)}%", v.get("revision", "-"))
        for v in status.get("versions", [])
    ]
    yield from _aligned(versions)
    yield ""
    yield from _experiment(status.get("experiment"))
    yield from _evidence(status)
    told: set[str] = set()
    for kind, condition in _conditions(found).items():
        yield f"{kind + ':':<15}{condition['status']:<8}{condition['reason']}"
        message = condition.get("message", "")
        for line in ["(as above)"] if message in told and message else message.splitlines():
            yield f"{'':<15}{line}"
        told.add(message)


def _experiment(tested: Object | None) -> Iterator[str]:
    """The versions of an experiment, by what they are compared by."""
    if not tested:
        return
    best = any("best" in arm for arm in tested["arms"])
    rows = [("ARM", "VERSION", "WEIGHT", "GOAL", "LOSING", *(["BEST"] if best else []), "GUARDRAILS", "STATE")]
    for arm in tested["arms"]:
        state = arm.get("out") or ("Winner" if arm["name"] == tested.get("winner") else "")
        if not state and arm.get("worseThan"):
            state = f"worse than {arm['worseThan']}"
        rows.append(
            (
                arm["name"],
                arm["version"],
                f"{arm.get('weight', 0)}%",
                _measured(arm.get("goal", {})),
                _towards(arm, "worse"),
                *([f"{arm['best']:.0%}" if "best" in arm else "-"] if best else []),
                arm.get("verdict", "-"),
                state or "-",
            )
        )
    yield from _aligned(rows)
    for arm in tested["arms"]:
        if arm.get("why"):
            yield f"{arm['name']}: {arm['why']}"
    if "rate" in tested:
        yield f"{tested['rate']:.3g} requests/s; LOSING is the logarithm of an e-value and its limit"
    if tested.get("coldStarts"):
        yield f"cold starts meanwhile: {tested['coldStarts']}"
    yield ""


def _evidence(status: Object) -> Iterator[str]:
    """What the evidence says of the candidate, or said of the one that was given up."""
    judged = status.get("rollout") or status.get("rejected") or {}
    rows = [("GUARDRAIL", "VERDICT", "CANDIDATE", "STABLE", "ALLOWED", "DEGRADED", "HEALTHY", "LEFT")]
    for g in judged.get("guardrails", []):
        left = g.get("secondsLeft")
        rows.append(
            (
                g["name"],
                g["verdict"],
                _measured(g["candidate"]) if g["kind"] != "query" else f"{g.get('value', '-')}",
                _measured(g["stable"]),
                _rate(g.get("allowed"), g["kind"]),
                _towards(g, "degraded"),
                _towards(g, "healthy"),
                f"{left} s" if left is not None else "-",
            )
        )
    if len(rows) == 1:
        return
    yield from _aligned(rows)
    for g in judged["guardrails"]:
        if g.get("why"):
            yield f"{g['name']}: {g['why']}"
    if "rate" in judged:
        yield f"{judged['rate']:.3g} requests/s; DEGRADED and HEALTHY are logarithms of e-values and their limits"
    if judged.get("withoutBaseline"):
        yield f"compared with the stable version, since the baseline has failed: {judged['withoutBaseline']}"
    if judged.get("forecast"):
        yield f"at the beginning: {judged['forecast']}"
    if judged.get("coldStarts"):
        yield f"cold starts meanwhile: {judged['coldStarts']}"
    yield ""


def _towards(told: Object, side: str) -> str:
    """How far an e-value is, and its limit."""
    return f"{told[side]:.1f} of {told[f'{side}At']:.1f}" if side in told else "-"


def _measured(counted: Object) -> str:
    """Counts of one version."""
    if "bad" in counted:
        return f"{counted['bad']} of {counted['count']}"
    return f"{counted['rate']:.3g} ({counted['count']})" if "rate" in counted else "-"


def _rate(value: float | None, kind: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if kind == "reward" else f"{value:.2%}"


def _conditions(item: Object) -> dict[str, Any]:
    return {c["type"]: c for c in item.get("status", {}).get("conditions", [])}


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@main.command()
@click.argument("name")
@click.option(
    "--operator-namespace", default="tidegate-system", show_default=True, help="Namespace that the operator runs in."
)
@click.option("--operator-port", default=8080, show_default=True, help="Port that it answers on.")
@cluster_options
def ledger(
    name: str,
    operator_namespace: str,
    operator_port: int,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Print the ledger of a ModelDeployment's rollouts, for `tidegate replay`.

    JSON lines: what each decision went by, and what was decided. They come from the operator's pod that acts, by way of
    the API server, which asks for the right to get pods/proxy (and the lease) in the operator's namespace.
    """

    async def show(api: Any) -> None:
        from tidegate.adapters.app import LEASE, leading_pod

        path = f"/apis/coordination.k8s.io/v1/namespaces/{operator_namespace}/leases/{LEASE}"
        pod = leading_pod(await api.get(path) or {"spec": {}})
        if not pod:
            raise Failed(
                f"no operator acts by the lease {operator_namespace}/{LEASE}; if it runs elsewhere, give "
                "--operator-namespace"
            )
        where = namespace or _default_namespace(kubeconfig, context)
        proxy = f"/api/v1/namespaces/{operator_namespace}/pods/{pod}:{operator_port}/proxy"
        async for line in api.stream(f"{proxy}/ledger/{where}/{name}", {}, 600):
            click.echo(json.dumps(line, separators=(",", ":")))

    _with_cluster(kubeconfig, context, show)


# --- acting -----------------------------------------------------------------------------------------------------------


def action(command: Command) -> Command:
    """The arguments of a command that asks for an action."""
    return click.argument("name")(
        click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)(
            click.option(
                "--timeout", default=30.0, show_default=True, help="Seconds to wait for the operator's answer."
            )(cluster_options(command))
        )
    )


@main.command()
@click.option("--full", is_flag=True, help="Skip the remaining steps and pauses.")
@click.option("--arm", help="Give this challenger of an experiment all requests.")
@action
def promote(name: str, full: bool, arm: str | None, **where: Any) -> None:
    """Approve the pause that a rollout waits at, or, with --full, give the candidate everything."""

    def ask(found: Object) -> str:
        if arm:
            return f"promote {arm}"
        rollout, tested = (found.get("status", {}).get(part) for part in ("rollout", "experiment"))
        if not rollout and tested:
            listed = ", ".join(arm["name"] for arm in tested["arms"][1:] if not arm.get("out"))
            raise Failed(
                f"an experiment of {name} is on: say which one is to get all requests, --arm {listed or 'NAME'}"
            )
        if not rollout:
            raise Failed(f"no rollout of {name} is on")
        return f"promote {rollout['candidate']}" if full else f"approve {rollout['candidate']}/{rollout.get('step', 0)}"

    _ask(name, ask, **where)


@main.command()
@click.option("--arm", help="Of an experiment, take only this challenger out.")
@action
def abort(name: str, arm: str | None, **where: Any) -> None:
    """Give the candidate, or all challengers, up: their requests go to the stable version."""

    def ask(found: Object) -> str:
        if arm:
            return f"abort {arm}"
        candidate = found.get("status", {}).get("candidate")
        if not candidate and found.get("status", {}).get("experiment"):
            return "abort"
        if not candidate:
            raise Failed(f"no rollout of {name} is on; `tidegate undo {name}` goes back to an earlier version")
        return f"abort {candidate}"

    _ask(name, ask, **where)


@main.command()
@click.option("--to", help="Version to go back to, by its name or id. Default: the latest one that was stable.")
@action
def undo(name: str, to: str | None, **where: Any) -> None:
    """Go back to an earlier version that is kept, whatever the spec asks for."""
    _ask(name, lambda _: f"undo {to}" if to else "undo", **where)


@main.command()
@action
def retry(name: str, **where: Any) -> None:
    """Try the version of the spec again after it was given up or undone."""
    _ask(name, lambda _: "retry", **where)


@main.command()
@action
def pause(name: str, **where: Any) -> None:
    """Hold the rollout where it is (sets spec.rollout.paused)."""
    _set_paused(name, True, **where)


@main.command()
@action
def resume(name: str, **where: Any) -> None:
    """Let a paused rollout go on (clears spec.rollout.paused)."""
    _set_paused(name, False, **where)


def _set_paused(
    name: str,
    paused: bool,
    *,
    output: str,
    timeout: float,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    async def patch(api: Any) -> None:
        path = f"{_folder(namespace, kubeconfig, context)}/{name}"
        await _one(api, path)
        changed = await _patch(api, path, {"spec": {"rollout": {"paused": paused}}})
        found = await _until(api, path, timeout, lambda o: _observed(o, changed["metadata"]["generation"]))
        progress = _conditions(found).get("Progressing", {})
        message = f"{'paused' if paused else 'resumed'}: {progress.get('message', '')}"
        click.echo(json.dumps({"accepted": True, "message": message}) if output == "json" else message)

    _with_cluster(kubeconfig, context, patch)


def _observed(found: Object, generation: int) -> bool:
    return bool(found.get("status", {}).get("observedGeneration", 0) >= generation)


def _ask(
    name: str,
    compose: Callable[[Object], str],
    *,
    output: str,
    timeout: float,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Writes the request into the annotation and waits for what the operator makes of it."""

    async def ask(api: Any) -> None:
        path = f"{_folder(namespace, kubeconfig, context)}/{name}"
        found = await _one(api, path)
        value = f"{compose(found)} #{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{secrets.token_hex(3)}"
        await _patch(api, path, {"metadata": {"annotations": {REQUEST_ANNOTATION: value}}})

        def answered(current: Object) -> bool:
            return bool(current.get("status", {}).get("request", {}).get("value") == value)

        answer = (await _until(api, path, timeout, answered))["status"]["request"]
        if output == "json":
            click.echo(json.dumps(answer))
        else:
            click.echo(answer["message"], err=not answer["accepted"])
        if not answer["accepted"]:
            raise SystemExit(1)

    _with_cluster(kubeconfig, context, ask)


async def _patch(api: Any, path: str, body: Any) -> Any:
    query = {"fieldManager": "tidegate-cli"}
    return await api.call("PATCH", path, query, body, "application/merge-patch+json")


async def _until(api: Any, path: str, patience: float, done: Callable[[Object], bool]) -> Any:
    end = time.monotonic() + patience
    while True:
        found = await api.get(path)
        if found is not None and done(found):
            return found
        if time.monotonic() > end:
            raise Failed(
                f"the operator has not answered within {patience:.0f} s; the request stands, and is carried out once "
                "it runs. See: kubectl -n tidegate-system get pods"
            )
        await asyncio.sleep(0.2)


def _folder(namespace: str | None, kubeconfig: str | None, context: str | None) -> str:
    where = namespace or _default_namespace(kubeconfig, context)
    return f"/apis/{API_VERSION}/namespaces/{where}/modeldeployments"


def _default_namespace(kubeconfig: str | None, context: str | None) -> str:
    """The namespace of the kubeconfig's context, `default` if it names none."""
    from kubernetes.aio import config

    try:
        contexts, active = config.list_kube_config_contexts(kubeconfig)
    except config.ConfigException:
        return "default"
    chosen = next((c for c in contexts if c["name"] == context), None) if context else active
    return str(((chosen or {}).get("context") or {}).get("namespace") or "default")


def _with_cluster(kubeconfig: str | None, context: str | None, act: Callable[[Any], Awaitable[None]]) -> None:
    """Runs `act` with the cluster's API; what goes wrong there is told in one line."""
    import aiohttp

    from tidegate.adapters.api import ApiError, connected, words_of
    from tidegate.runtime.write import Conflict

    async def go() -> None:
        async with connected(kubeconfig, context) as api:
            await act(api)

    try:
        asyncio.run(go())
    except (ApiError, Conflict) as error:
        raise Failed(str(error)) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Failed(f"the cluster cannot be reached: {words_of(error)}. Is KUBECONFIG right?") from error
