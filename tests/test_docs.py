"""What the docs show works: their commands are typed, in order, as a stranger would; their SQL is asked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ROOT, Service
from tests.test_tidy import FENCE, files


def blocks(path: Path, language: str) -> list[str]:
    """The code in that language, from top to bottom."""
    return [code for found, code in FENCE.findall(path.read_text("utf-8")) if found == language]


WITH_SQL = [path for path in files("*.md") if blocks(path, "sql")]


@pytest.mark.parametrize("path", WITH_SQL, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_sql_of_the_docs_is_understood(path: Path, url: str) -> None:
    """Seen to fail with a column that is not there."""
    with psycopg.connect(url) as connection:
        for code in blocks(path, "sql"):
            connection.execute(code.encode())


def script(path: Path) -> str:
    """All that a page shows, from top to bottom, as one program of the shell."""
    pieces = ["set -eu"]
    for language, code in FENCE.findall(path.read_text("utf-8")):
        if language == "python":
            pieces.append(f"python - <<'END_OF_PYTHON'\n{code}END_OF_PYTHON")
        elif language == "sh":
            pieces.append(code)
    return "\n".join(pieces)


@pytest.mark.parametrize("name", ["http", "reference/cli", "quickstart"])
def test_the_examples_of_a_page_work(name: str, service: Service, tmp_path: Path) -> None:
    """All of a page, in the folder of the repository. Seen to fail with a wrong path in a URL, a wrong option, a
    body with a field that is not there, and a name that Python does not know."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    typed = script(ROOT / "docs" / f"{name}.md").replace("http://127.0.0.1:8000", service.url)
    env = {**service.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash"], input=typed, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "/problems/" not in done.stdout, done.stdout
    assert re.search(r'"type":"run.completed".*"status":"succeeded"', done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["docs"], "an example litters the folder"
