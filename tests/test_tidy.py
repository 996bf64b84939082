"""The repository tests itself: a test for each claim about its text, and in its docstring how it was seen to fail."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import orjson
import pytest
import typer
import typer.core

from eventstore.statements import folder as sql_folder
from eventstore.statements import statements
from projections.events import registry
from service.api.problems import all_problems
from service.api.routes import ENDPOINTS, PREFIX
from service.cli import app as command_line
from service.settings import Settings
from service.work.archive import BadPackage
from tests.conftest import ROOT

PACKAGES = ("eventstore", "projections", "service")
REFERENCE = ROOT / "docs" / "reference"
LINES_MAX = 400

# The modules of Python


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return tuple(
        Module(name, path, ast.parse(path.read_text("utf-8"))) for name, path in zip(names, paths, strict=True)
    )


def imported(module: Module) -> set[str]:
    """Every module that this one imports, anywhere in it; `from a import b` counts as `a` and as `a.b`."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=str(source), names=names):
                found |= {source, *(f"{source}.{name.name}" for name in names)}
    return found


def used(module: Module) -> set[str]:
    """Every dotted name that is used or imported, in full: what an alias stands for is put in its place."""
    full: dict[str, str] = {}
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                full |= {name.asname or name.name: name.name for name in names}
            case ast.ImportFrom(module=str(source), names=names):
                full |= {name.asname or name.name: f"{source}.{name.name}" for name in names}
    found = set(full.values())
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in full:
                found.add(".".join([full[first], *rest]))
    return found


class Door(NamedTuple):
    what: re.Pattern[str]
    modules: Mapping[str, str]
    """Who may pass, as a prefix, and why."""


DOORS = {
    "the database": Door(
        re.compile(r"psycopg(_pool)?\b"), {"eventstore.database": "where driver errors become errors of the log"}
    ),
    "HTTP": Door(
        re.compile(r"starlette\b"),
        {
            "service.api.": "the API",
            "service.cli.http_server": "names the app's type, to drain it before uvicorn waits for it",
        },
    ),
    "the HTTP server": Door(re.compile(r"uvicorn\b"), {"service.cli.": "starts it"}),
    "other processes": Door(
        re.compile(
            r"subprocess\b|multiprocessing\b|(os|asyncio)\.(fork|exec|spawn|posix_spawn|create_subprocess|system|popen)"
            r"|anyio\.(open_process|run_process)"
        ),
        {
            "service.work.process": "engines under their supervisors, and the program's own",
            "service.work.supervisor": "becomes the engine",
            "eventstore.embedded": "PostgreSQL",
            "service.cli.db": "psql has the terminal to itself, as if it had been typed",
        },
    ),
    "the environment": Door(re.compile(r"os\.(environ|getenv|putenv)"), {"service.settings": "the one reader"}),
    "the wall clock": Door(
        re.compile(r"time\.(time|time_ns|localtime|gmtime|ctime)$|datetime\.(datetime|date)\.(now|utcnow|today)$"),
        {"eventstore.clock": "the one reader"},
    ),
    "chance": Door(
        re.compile(r"(random|secrets|uuid)\b|os\.(urandom|getrandom)"), {"eventstore.clock": "the one thrower"}
    ),
}


@pytest.mark.parametrize("name", DOORS)
def test_every_door_is_kept(name: str) -> None:
    """Only the modules of a door touch what lies behind it, and each that may, does.

    Seen to fail with `import psycopg`, `datetime.now(UTC)`, `from os import environ as e`, `os.system("x")` in
    projections/run.py, and with a module in DOORS that does not need it."""
    door = DOORS[name]
    found = {module.name for module in modules() if any(door.what.match(full) for full in used(module))}
    assert [module for module in sorted(found) if not module.startswith(tuple(door.modules))] == []
    assert [prefix for prefix in door.modules if not any(module.startswith(prefix) for module in found)] == []


def test_imports_go_down_only() -> None:
    """service → projections → eventstore. Seen to fail with `import service.files` in projections/run.py."""
    above = {"eventstore": ("projections", "service"), "projections": ("service",), "service": ()}
    wrong = [
        f"{module.name} imports {name}"
        for module in modules()
        for name in sorted(imported(module))
        if name.split(".")[0] in above[module.name.split(".")[0]]
    ]
    assert wrong == []


def test_the_api_and_the_worker_never_meet() -> None:
    """Neither imports the other, by whatever way round. Seen to fail with `import service.jobs` in service/hub.py."""
    known = {module.name: module for module in modules()}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            name = left.pop()
            if name in known and name not in seen:
                seen.add(name)
                left += imported(known[name])
        return seen

    api = set().union(*(reached(name) for name in known if name.startswith("service.api.")))
    worker = reached("service.worker")
    assert len(api) > 20
    assert len(worker) > 20
    assert api & {"service.worker", "service.jobs", "service.run_job", "service.build_job", "service.writer"} == set()
    assert {name for name in worker if name.startswith("service.api")} == set()


def test_the_supervisor_needs_the_standard_library_only() -> None:
    """It runs with -I -S, beside any venv. Seen to fail with `import orjson` in it."""
    (supervisor,) = (module for module in modules() if module.name == "service.work.supervisor")
    assert {name.split(".")[0] for name in imported(supervisor)} <= sys.stdlib_module_names


APP, CLIENT = {"starlette", "uvicorn", "prometheus_client"}, {"httpx"}
OPERATOR = {"psycopg", "structlog", "cryptography"}


@pytest.mark.parametrize(
    ("verb", "heavy"),
    [
        ("", APP | CLIENT | OPERATOR | {"pydantic"}),
        *((verb, APP | {"structlog", "cryptography"}) for verb in ("builds", "configs", "demo", "runs", "stats")),
        *((verb, APP | CLIENT) for verb in ("db", "keys", "log", "prune")),
    ],
)
def test_a_verb_imports_what_it_needs(verb: str, heavy: set[str]) -> None:
    """`ade --help` and what is asked often are there at once. Seen to fail with all verbs imported in service/cli, and
    with `postgres` in service/cli/serve.py."""
    code = f"import sys; from service import cli; from service.cli import {verb or 'app'}; print(*sys.modules)"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(asked.stdout.split())
    assert {"service.cli", "typer"} <= loaded
    assert heavy & loaded == set()


LONG = {
    "eventstore.embedded": "one life cycle: each step rests on the locks, the account and the paths of the others",
    "service.work.process": "one protocol, with the two ends of its pipes",
}


def test_modules_are_short() -> None:
    """Seen to fail with LINES_MAX = 300, and with a name in LONG that is short."""
    long = {module.name for module in modules() if module.path.read_bytes().count(b"\n") >= LINES_MAX}
    assert long == LONG.keys()


# SQL

SQL = re.compile(
    r"\bSELECT\b.*\bFROM\b|\bINSERT INTO\b|\bUPDATE\b.*\bSET\b|\bDELETE FROM\b|\b(CREATE|ALTER|DROP|TRUNCATE) [A-Z]+"
    r"|\b(LISTEN|NOTIFY)\b|^\s*(select|insert into|update|delete from)\s",
    re.DOTALL,
)
SQL_IN_PYTHON = {
    ("eventstore.embedded", "CREATE DATABASE ade\n"): "there is no database yet that could be asked by name",
    ("eventstore.database", "LISTEN {}"): "takes a name, and a name is no parameter",
    ("service.cli.demo", "SQL: SELECT id, status, exit_code FROM runs;"): "shown to a person, not to the database",
}


def strings(module: Module) -> Iterator[str]:
    """Every text in the code that is not a docstring or another bare one."""
    bare = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def test_sql_is_in_sql() -> None:
    """No statement hides in Python. Seen to fail with `x = "DELETE FROM events"` in eventstore/log.py, and with an
    exception that nothing needs."""
    found = {(module.name, text) for module in modules() for text in strings(module) if SQL.search(text)}
    assert found == SQL_IN_PYTHON.keys()


def called_statements(module: Module) -> Iterator[str]:
    """The names that are handed to `rows`, `row`, `call` and the lists, where they stand there as text."""
    places = {"row": 0, "rows": 0, "call": 1, "answer": 2}
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=arguments) if name in places:
                match arguments[places[name] : places[name] + 1]:
                    case [ast.Constant(value=str(statement))]:
                        yield statement


def test_every_statement_is_there_and_is_used() -> None:
    """Seen to fail with `x.rows("nothing")` in service/hub.py, and with a statement `-- unused: …` in log.sql."""
    called = {name for module in modules() for name in called_statements(module)}
    assert called - statements().keys() == set()
    assert len(called) > 30
    texts = {text for module in modules() for text in strings(module)}
    made = {"feed_of_run", "feed_of_build"}  # projections.feeds puts these names together
    assert statements().keys() - texts - made == set()


@pytest.mark.parametrize("path", sorted((sql_folder() / "statements").glob("*.sql")), ids=lambda path: path.stem)
def test_every_statement_has_a_heading(path: Path) -> None:
    """`-- name: what is true afterwards`, then one statement. Seen to fail without one, and with two below one."""
    for statement in path.read_text("utf-8").strip().split("\n\n"):
        assert re.match(r"-- [a-z_]+: \S.+\n", statement), statement
        code = "\n".join(line for line in statement.splitlines() if not line.startswith("--"))
        assert code.rstrip().endswith(";"), statement
        assert re.sub(r"'[^']*'", "", code).count(";") == 1, statement


# The reference: what is in the code is in the docs


@cache
def reference(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text("utf-8")


def sections(text: str) -> dict[str, str]:
    """What stands below each name that is in backticks in a heading."""
    found: dict[str, str] = {}
    for piece in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = piece.partition("\n")
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", heading), body)
    return found


def test_every_setting_is_documented() -> None:
    """With its default. Seen to fail with another port, with a new field, and with a row that is about no setting."""
    rows = dict(re.findall(r"^\| `(ADE_\w+)` \| `?([^`|]+?)`? \|", reference("settings"), re.MULTILINE))
    defaults = {f"ADE_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
    assert rows == {name: "unset" if default is None else str(default) for name, default in defaults.items()}
    assert "`ADE_SECRET_<NAME>`" in reference("settings")


def test_every_event_is_documented() -> None:
    """With each of its fields. Seen to fail with a new event, a new field of one, and a section about no event."""
    documented = sections(reference("events"))
    assert {name for name in documented if name != "engine.*"} == registry.keys()
    for wire, payload in registry.items():
        fields = {field.alias or name for name, field in payload.model_fields.items()}
        assert fields - set(re.findall(r"`(\w+)`", documented[wire])) == set(), wire
        assert payload.bulk == documented[wire].lstrip().startswith("**Bulk.**"), wire
        assert payload.ends == ("**ends the stream**" in documented[wire]), wire


def test_every_event_that_was_ever_written_is_documented() -> None:
    """The golden file is the memory of what was written. Seen to fail with a type in it that is in no section."""
    lines = (ROOT / "tests" / "golden" / "events.ndjson").read_bytes().splitlines()
    types = {orjson.loads(line)["type"] for line in lines}
    assert {wire for wire in types if not wire.startswith("engine.")} <= sections(reference("events")).keys()


def test_every_problem_is_documented() -> None:
    """With its status. Seen to fail with a new refusal, another status, and a row about none."""
    rows = {
        (slug, int(status))
        for slug, status in re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", reference("problems"), re.MULTILINE)
    }
    assert rows == {(kind.slug, kind.status) for kind in all_problems()}
    assert set(get_args(BadPackage.Slug)) == set(
        re.findall(r"^\| `([a-z-]+)` \| [^\d]", reference("problems"), re.MULTILINE)
    )


def test_every_endpoint_that_the_docs_name_is_there() -> None:
    """The reference is made from the table of routes; the prose is not. Seen to fail with `GET /run/{id}` in it."""
    known = {f"{one.method} {path}" for one in ENDPOINTS for path in (one.path, one.path.removeprefix(PREFIX))}
    for path in files("docs/*.md", "README.md"):
        named = set(re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`?]*)[^`]*`", path.read_text("utf-8")))
        assert named - known == set(), path


def commands(group: typer.core.TyperGroup, *above: str) -> Iterator[tuple[str, list[str]]]:
    """Every command that `--help` shows, with its options."""
    for name in group.commands:
        command: Any = group.resolve_command(typer.Context(group), [name])[1]
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, *above, name)
        elif not group.commands[name].hidden:
            options = [
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            ]
            yield " ".join([*above, name]), [option for option in options if option.startswith("-")]


def test_every_command_is_documented() -> None:
    """With each of its options. Seen to fail with a new command, a new option, and a section about no command."""
    group = typer.main.get_command(command_line)
    assert isinstance(group, typer.core.TyperGroup)
    documented = {re.sub(r" [A-Z\[].*", "", name): body for name, body in sections(reference("cli")).items()}
    known = dict(commands(group, "ade"))
    assert documented.keys() == known.keys()
    for name, options in known.items():
        assert [option for option in options if f"`{option}`" not in documented[name]] == [], name


def test_help_says_what_the_verbs_say() -> None:
    """Without importing them. Seen to fail with another word in VERBS, and in the docstring of `demo`."""
    group = typer.main.get_command(command_line)
    assert isinstance(group, typer.core.TyperGroup)
    for name, listed in group.commands.items():
        verb: Any = group.resolve_command(typer.Context(group), [name])[1]
        assert listed.hidden or listed.help == verb.help.partition("\n\n")[0].replace("\n", " "), name


# Every text


@cache
def files(*patterns: str) -> tuple[Path, ...]:
    """What is, or would be, in the repository. (It may be another account's: hence the exception for git.)"""
    asked = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        *patterns,
    ]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout
    return tuple(
        path for path in sorted(ROOT / os.fsdecode(name) for name in told.split(b"\0") if name) if path.is_file()
    )


DOCS = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in files("*.md")]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The places in a document that a link can name, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS)
def test_links_lead_somewhere(path: Path) -> None:
    """Files, places in them, and what is named in backticks. Seen to fail with a file, an anchor and a test that are
    not there."""
    text = FENCE.sub("", path.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
    for name, test in re.findall(r"`((?:eventstore|projections|service|sql|tests|docs)/[\w./-]+)(?:::(\w+))?`", text):
        assert (ROOT / name).exists(), name
        assert not test or f"def {test}(" in (ROOT / name).read_text("utf-8"), test


@pytest.mark.parametrize("path", DOCS)
def test_code_blocks_parse(path: Path) -> None:
    """Seen to fail with `def f(:` as Python, `if true; fi` as sh, `{1}` as JSON and `a = ` as TOML."""
    for language, code in FENCE.findall(path.read_text("utf-8")):
        match language:
            case "python":
                compile(code, str(path), "exec")
            case "sh" | "bash":
                checked = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True, check=False)
                assert checked.returncode == 0, checked.stderr
            case "json":
                json.loads(code)
            case "toml":
                tomllib.loads(code)


def test_nothing_tells_of_this_machine() -> None:
    """No path of it, no host of its package registry, nothing beside the repository. Seen to fail with each of them."""
    foreign = re.compile(
        r"/(?:root|home/\w+|Users/\w+)/|\.\./shared|shared/desig[n]|https?://[\w.-]*(?:nexus|artifactory)"
    )
    settings = [value for name, value in os.environ.items() if re.match(r"(PIP|UV)_.*(URL|INDEX|LINKS|HOST)", name)]
    own = {str(ROOT), *(urlsplit(value).hostname or value for setting in settings for value in setting.split())}
    for path in files():
        text = path.read_bytes().decode("utf-8", "replace")
        assert foreign.search(text) is None, path
        assert [secret for secret in own if secret in text] == [], path


def test_the_wheel_will_hold_what_it_must() -> None:
    """The packages whole, and sql/ where the loader looks for it. Hatchling leaves out what git ignores. Seen to fail
    with another place for sql/, with a package less, and with `*.sql` or `*.html` in .gitignore."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) == set(PACKAGES)
    assert wheel["force-include"] == {"sql": "eventstore/_sql"}
    assert wheel.keys() == {"packages", "force-include"}
    kept = set(files())
    needed = [path for folder in ("sql", *PACKAGES) for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    assert {path for path in needed if "__pycache__" not in path.parts} - kept == set()
    assert {ROOT / "service/console/index.html", ROOT / "service/console/console.js"} <= kept
