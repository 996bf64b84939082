"""`/metrics`: what the processes of a machine show together, and what is written about it elsewhere."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from eventstore import Append, Appender, Part
from eventstore.appender import Landed
from eventstore.errors import Conflict
from service.exposition import Exposition, merged
from tests import engine
from tests.conftest import ROOT, Server, Service, Store, own_service
from tests.histories import WORKSPACE, line, run_created
from tests.test_serve import kill, paused, processes
from tests.test_tidy import anchors

DOCS = ROOT / "docs"
DASHBOARD = DOCS / "deploy" / "grafana-dashboard.json"
ALERTS = DOCS / "deploy" / "alerts.yml"


def families(service: Service) -> dict[str, Any]:
    answer = httpx.get(f"{service.url}/metrics", timeout=60)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def samples(service: Service) -> list[Sample]:
    return [sample for family in families(service).values() for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float | None:
    values = [s.value for s in found if s.name == name and labels.items() <= s.labels.items()]
    assert len(values) < 2, values
    return values[0] if values else None


def exposed(family: Any) -> set[str]:
    """The name as it is written about, and those that its samples can have."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"} if family.type == "histogram" else {name}


# What is counted


def test_every_process_of_the_machine_is_shown_and_counts_what_it_did(server: Server) -> None:
    """A run is counted once, by the worker that ended it; a request by its route; each process by its name, which the
    next one takes over when it is killed; one that hangs is shown as down, and keeps nobody waiting."""
    with own_service(server) as service, service.http as http:
        config = engine.actor(http)
        run, _ = engine.run(http, config, "sys.exit(3)")
        with engine.following(http, run["id"]) as stream:
            stream.read()
        found = samples(service)
        assert {s.labels["process"]: s.value for s in found if s.name == "ade_process_up"} == {
            "api-1": 1, "worker-1": 1, "projector-1": 1,
        }  # fmt: skip
        ended = [(s.labels, s.value) for s in found if s.name == "ade_runs_completed_total"]
        assert ended == [({"process": "worker-1", "status": "failed", "stop_reason": "failed"}, 1.0)]
        assert value(found, "ade_builds_completed_total", status="active") == 1
        assert value(found, "ade_http_requests_total", route="/api/v1/runs/{id}", status="200", method="GET") == 1
        assert value(found, "ade_log_events_total") == len(engine.told(http.get("/events"))["data"])
        counted = sum(s.value for s in found if s.name == "ade_appended_events_total")
        assert counted == value(found, "ade_log_events_total")
        assert value(found, "ade_queue_depth", kind="run", waiting_for="worker") == 0
        assert value(found, "ade_processes_connected", kind="worker") == 1
        assert value(found, "ade_projector_elected") == value(found, "ade_database_up") == 1
        assert (value(found, "ade_delivery_lag_seconds_count", process="api-1") or 0) > 0

        with paused(processes(service)["projector"]):
            assert value(samples(service), "ade_process_up", process="projector-1") == 0
        kill(service, "worker")
        engine.eventually(
            lambda: value(samples(service), "ade_process_up", process="worker-1"), "the next worker has the name"
        )
        found = samples(service)
        assert {s.labels["process"] for s in found if s.name == "process_start_time_seconds"} == {
            *("api-1", "worker-1", "projector-1")
        }
        assert value(found, "ade_runs_completed_total", process="worker-1") is None
        assert "Traceback" not in service.log.read_text()


def test_no_label_holds_what_there_can_be_any_number_of(service: Service, http: httpx.Client) -> None:
    """No id, no name, no workspace, whatever is asked for: a path that is not there is no route, a method that nobody
    knows is no method."""
    run, _ = engine.run(http, engine.actor(http), "print('x')")
    http.request("PROPFIND", "/runs")
    http.get(f"/nothing/{run['id']}")
    found = samples(service)
    labels = {pair for sample in found for pair in sample.labels.items()}
    assert {name for name, _ in labels} <= {
        *("process", "le", "status", "stop_reason", "step", "kind", "next", "method", "route", "watched", "folder"),
        *("waiting_for", "projection", "version"),
    }
    assert not [text for _, text in labels if re.search(r"_[0-9A-Z]{26}|tests|actor", text)]
    assert ("method", "other") in labels
    assert ("route", "none") in labels


@pytest.mark.anyio
async def test_a_batch_is_counted_when_it_has_landed_and_only_then(store: Store) -> None:
    """Its events and bytes, and its control events with their streams; what met a conflict is not among them."""
    landed: list[Landed] = []
    appender = Appender(store.database, landed.append)
    async with anyio.create_task_group() as tasks:
        await tasks.start(appender.run)
        created, said = run_created(), [line("run_1", f"{n}") for n in range(3)]
        part = Part("run_1", (created, *said), workspace=WORKSPACE, expect=0)
        await appender.append(Append((part,)))
        with pytest.raises(Conflict):
            await appender.append(Append((part,)))
        await appender.append(Append((Part("run_1", said),)))
        tasks.cancel_scope.cancel()
    assert [(one.events, one.control) for one in landed] == [(4, [("run_1", created)]), (3, [])]
    assert landed[1].bytes == sum(len(event.data) for event in said)
    assert all(one.seconds > 0 for one in landed)


@pytest.mark.anyio
async def test_who_shares_a_folder_has_a_name_of_his_own(tmp_path: Path) -> None:
    """As long as he lives; each metric has one heading, and every sample a process."""
    async with anyio.create_task_group() as tasks:
        shown = [Exposition("worker", tmp_path) for _ in range(3)]
        for one in shown:
            await tasks.start(one.run)
        assert [one.name for one in shown] == ["worker-1", "worker-2", "worker-3"]
        text = merged(await shown[0].all()).decode()
        tasks.cancel_scope.cancel()
    headings = re.findall(r"^# HELP (\S+)", text, re.MULTILINE)
    assert len(headings) == len(set(headings)) > 20
    named = {s.labels["process"] for f in text_string_to_metric_families(text) for s in f.samples}
    assert named == {"worker-1", "worker-2", "worker-3"}
    async with anyio.create_task_group() as tasks:
        again = Exposition("worker", tmp_path)
        await tasks.start(again.run)
        assert again.name == "worker-1"
        tasks.cancel_scope.cancel()


# What is written about it


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the dashboard and of the alerts, with where it stands."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


def test_dashboard_and_alerts_speak_of_what_is_there(service: Service) -> None:
    """Every metric and every label that they name is in the registry of a running service. Seen to fail with a metric
    that was renamed, and with a label that it has not."""
    found = families(service)
    known = {name: family for family in found.values() for name in exposed(family)}
    seen = 0
    for where, expression in expressions():
        bare = re.sub(r'"[^"]*"|\$\w+', "", expression)
        names = set(re.findall(r"\b(?:ade|process)_\w+", re.sub(r"\{[^}]*\}|\b(?:by|on) \([^)]*\)", "", bare)))
        assert names, where
        assert names <= known.keys(), where
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", " ".join(re.findall(r"\{([^}]*)\}", bare))))
        used |= {label for by in re.findall(r"by \(([^)]*)\)", bare) for label in by.split(", ")}
        used -= {"instance", "le", "process"}
        with_samples = [known[name] for name in names if known[name].samples]
        labels = {label for family in with_samples for sample in family.samples for label in sample.labels}
        if len(with_samples) == len(names):
            assert used <= labels, where
            seen += 1
    assert seen > 20


def test_every_alert_leads_to_what_is_to_be_done() -> None:
    """Its name is its own, and it links to a section of docs/operate.md."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operate.md"
        assert anchor in anchors(ROOT / page), rule["alert"]
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"page", "ticket", "info"}


def test_every_metric_is_documented_and_no_other(service: Service) -> None:
    """By the name that it has at /metrics, and as the kind that it is."""
    text = (DOCS / "observability.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (counter|gauge|histogram) \|", text, re.MULTILINE)
    documented = {(name, kind) for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    exist = {(f"{f.name}_total" if f.type == "counter" else f.name, f.type) for f in families(service).values()}
    assert documented == exist


def test_promtool_accepts_it_all(service: Service, tmp_path: Path) -> None:
    """Where Prometheus's own checker is on this machine: the alerts, the dashboard's expressions as rules, and what
    /metrics answers, names and all."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip(
            "LOUD: promtool is not on this machine: the names in alerts and dashboard are checked, not the PromQL"
        )
    asked = [expression.replace("$__rate_interval", "5m") for _, expression in expressions()]
    rules = [{"record": f"asked:{number}", "expr": expression} for number, expression in enumerate(asked)]
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for file in (ALERTS, tmp_path / "dashboard.yml"):
        done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    text = httpx.get(f"{service.url}/metrics").text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_used_stops_no_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A path that is too long for a socket: the process says so, goes on, and still shows itself."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    shown = Exposition("worker", folder)
    async with anyio.create_task_group() as tasks:
        await tasks.start(shown.run)
        assert b'process="worker-1"' in merged(await shown.all())
        tasks.cancel_scope.cancel()
    assert "the metrics of this process are not shown" in caplog.text
