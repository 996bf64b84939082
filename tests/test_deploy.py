"""The files of docs/deploy: right in their syntax, and about settings, commands and files that are there."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from service.cli import app as command_line
from service.settings import SECRET_PREFIX, Settings
from tests.conftest import ROOT
from tests.test_docs import blocks
from tests.test_tidy import commands

DEPLOY = ROOT / "docs" / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())
PAGES = [ROOT / "docs" / "deploy.md", ROOT / "docs" / "quickstart.md"]
UNITS = sorted(DEPLOY.glob("*.service"))
YAML = sorted([*DEPLOY.glob("*.yml"), *DEPLOY.glob("*.yaml")])


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def content(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda path: path.name)
def test_every_setting_is_a_real_one(path: Path) -> None:
    """Seen to fail with `ADE_WORKERS` in compose.yaml."""
    known = {f"ADE_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bADE_[A-Z_]*[A-Z]", path.read_text("utf-8")))
    assert {name for name in named - known if not name.startswith(SECRET_PREFIX)} == set()


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda path: path.name)
def test_every_command_is_a_real_one(path: Path) -> None:
    """As it stands in a list of arguments, in backticks, after a prompt, or as a program with its path. Seen to fail
    with `ade server` in a unit, in the Containerfile and in the page."""
    group = typer.main.get_command(command_line)
    assert isinstance(group, typer.core.TyperGroup)
    known = {name for name, _ in commands(group, "ade")}
    text = path.read_text("utf-8").replace('", "', " ")
    named = re.findall(r'(?:bin/|["`]|^\$ |^# |^)(ade(?: [a-z][a-z-]+)+)', text, re.MULTILINE)
    for name in named:
        words = name.split()
        assert any(" ".join(words[:n]) in known for n in range(2, 4)), name


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_understood(unit: Path, tmp_path: Path) -> None:
    """By systemd itself where it is here. Seen to fail with `KillMode=some`, and with a section that is not known."""
    text = unit.read_text("utf-8")
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(text)
    assert parsed.sections() == ["Unit", "Service", "Install"]
    drain = Settings.model_fields["drain_seconds"].default
    assert int(parsed["Service"]["TimeoutStopSec"]) >= drain + 20
    if shutil.which("systemd-analyze") is None:
        pytest.skip("LOUD: there is no systemd here: the unit's syntax is not checked")
    there = tmp_path / unit.name
    there.write_text(text.replace("/opt/ade/bin/ade", "/bin/true"))
    checked = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_compose_fits_together() -> None:
    """What a service waits for, mounts and is made of is there. Seen to fail with another name in `depends_on`, in
    `volumes`, and with a file that is not there."""
    compose = content(DEPLOY / "compose.yaml")
    services, volumes = compose["services"], set(compose["volumes"])
    used = set()
    for name, service in services.items():
        assert {"image", "build"} & service.keys(), name
        assert set(service.get("depends_on", ())) <= services.keys(), name
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_file(), source
            else:
                used.add(source)
    assert used == volumes
    build = services["ade"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("LOUD: docker has no compose here: the file was checked by us alone")
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "POSTGRES_PASSWORD": "x", "GRAFANA_PASSWORD": "x"}
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    checked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_image_is_made_of_what_is_there() -> None:
    """In two stages, by nobody's account but its own, alive as it says. Seen to fail with a folder less in COPY, and
    without USER."""
    text = (DEPLOY / "Containerfile").read_text("utf-8").replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {
        "FROM",
        "ARG",
        "WORKDIR",
        "COPY",
        "RUN",
        "ENV",
        "USER",
        "VOLUME",
        "EXPOSE",
        "HEALTHCHECK",
        "STOPSIGNAL",
        "CMD",
    }
    assert {step for step, _ in steps} == known
    assert [step for step, _ in steps].count("FROM") == 2
    copied = {source for step, rest in steps if step == "COPY" and "--from" not in rest for source in rest.split()[:-1]}
    assert {path for path in copied if not (ROOT / path).exists()} == set()
    assert {"pyproject.toml", "README.md", "sql", "service", "projections", "eventstore"} <= copied
    (user,) = [rest for step, rest in steps if step == "USER"]
    assert int(user.split(":")[0]) > 0
    assert "lock" not in "".join(copied)


def test_what_watches_fits_together() -> None:
    """Pipelines are made of what is defined, and Prometheus asks where the service listens. Seen to fail with an
    exporter that is not defined, and with another port."""
    collector = content(DEPLOY / "otel-collector.yml")
    for pipeline in collector["service"]["pipelines"].values():
        for kind, wanted in pipeline.items():
            assert set(wanted) <= collector[kind].keys(), kind
    prometheus = content(DEPLOY / "prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"ade:{Settings.model_fields['port'].default}"]}]
    mounted = "\n".join(content(DEPLOY / "compose.yaml")["services"]["prometheus"]["volumes"])
    assert all(f"/etc/prometheus/{rules}:" in mounted for rules in prometheus["rule_files"])
    (source,) = content(DEPLOY / "grafana.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_yaml_file_is_understood(path: Path) -> None:
    """Seen to fail with a tab."""
    assert isinstance(content(path), dict)


def test_the_proxies_of_the_page_fit_the_settings() -> None:
    """They take bodies as large as the service does. Seen to fail with another number."""
    page = ROOT / "docs" / "deploy.md"
    most = Settings.model_fields["document_max_bytes"].default // 2**20
    assert f"client_max_body_size {most}m;" in blocks(page, "nginx")[0]
    assert f"max_size {most}MiB" in blocks(page, "caddy")[0]
