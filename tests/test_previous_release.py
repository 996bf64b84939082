"""The release before this one, its real code, on the schema of this one."""

import subprocess
from pathlib import Path

import anyio
import httpx
import pytest

from eventstore.migrations import status
from tests import engine
from tests.conftest import ROOT, Service, running_release
from tests.test_serve import paused, processes

FIRST = "94d32a3eb3d68aab6fb843126504078f41d88e5b"
"""What is taken for it while no release has a tag: the last commit before keys and their migrations."""


def git(*arguments: str) -> bytes | None:
    """What git answers; None where it knows nothing of it, as in a copy without the history."""
    command = ["git", "-c", "safe.directory=*", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def previous() -> str:
    """The newest release before this commit."""
    tag = git("describe", "--tags", "--match", "v*", "--abbrev=0", "HEAD^")
    return tag.decode().strip() if tag else FIRST


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of the previous release."""
    packed = git("archive", "--format=tar", previous())
    if packed is None:
        pytest.skip(f"LOUD: {previous()} is not in this copy of the repository: the previous release is not tested")
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(["tar", "--extract", "--directory", folder], input=packed, check=True)
    return folder


def test_the_previous_release_works_on_this_schema(release: Path, service: Service, http: httpx.Client) -> None:
    """It leaves the migrations as they are, takes a run, does it, and shows its feed byte for byte as this one does."""
    config_id = engine.actor(http)
    engine.build(http, config_id)
    before = anyio.run(status, service.database_url)
    assert not before.pending
    with (
        paused(processes(service)["worker"]),
        running_release(release, service.database_url, service.data, {}) as old,
    ):
        with old.http as client:
            run, events = engine.run(client, config_id, dry_run=True)
            assert (run["status"], run["stop_reason"]) == ("succeeded", "completed")
            assert [event["type"] for event in events] == ["run.created", "run.started", "run.completed"]
            assert engine.feed(client, run["id"]) == engine.feed(http, run["id"])
            assert engine.run(client, config_id, "print('hello')")[0]["status"] == "succeeded"
        assert "Traceback" not in old.log.read_text()
    after = anyio.run(status, service.database_url)
    assert (after.applied, after.functions_current) == (before.applied, True), "it put its own functions in their place"


def test_functions_change_with_a_migration(release: Path) -> None:
    """By a migration that it does not know a release sees that the functions are not its own to put in place."""

    def texts(tree: Path, folder: str) -> dict[str, str]:
        return {path.name: path.read_text("utf-8") for path in (tree / "sql" / folder).glob("*.sql")}

    changed = [folder for folder in ("functions", "projections") if texts(release, folder) != texts(ROOT, folder)]
    assert not changed or texts(ROOT, "migrations").keys() > texts(release, "migrations").keys()
