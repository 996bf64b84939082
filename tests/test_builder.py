"""Builds with the real uv, into real venvs. Only what says so needs a package registry."""

import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest

from service.work.builder import (
    BuildFailed,
    BuildPlan,
    Built,
    Fact,
    Output,
    StepCompleted,
    StepFailed,
    StepStarted,
    build,
    hydrate,
    usable,
    venv_python,
)
from service.work.execution import Gap
from service.work.installer import BuildLimits, CommandFailed, installer_environment, python_version
from service.work.manifest import Manifest
from service.work.process import Account, Command, Signaled, running

pytestmark = pytest.mark.anyio

PACKAGES = Path(__file__).parent / "packages"
ENVIRONMENT = installer_environment(os.environ)
LIMITS = BuildLimits(timeout_s=60, grace_s=1)
STEPS = ["create_venv", "install_engine", "install_config", "verify_imports", "collect_metadata"]
HEAD = """
[build-system]
requires = ["uv_build>=0.9,<1"]
build-backend = "uv_build"
[tool.uv.build-backend]
module-root = ""
"""


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uv-cache")


@dataclass
class Bench:
    """Plans under one folder, and what was told about each attempt."""

    room: Path
    cache_dir: Path
    facts: list[Fact] = field(default_factory=list)
    waiting: anyio.Event = field(default_factory=anyio.Event)  # a line says "waiting"
    canceled: anyio.Event = field(default_factory=anyio.Event)

    def plan(self, package: Path, engine: str | None = None) -> BuildPlan:
        return BuildPlan(
            build_id="build_1",
            folder=self.room / "venvs" / "ws" / "config" / "build_1",
            package=package,
            manifest=Manifest.read(package),
            engine=engine,
            python=Path(sys.executable),
            installer_env=ENVIRONMENT,
            cache_dir=self.cache_dir,
        )

    def package(
        self, files: Mapping[str, str] | None = None, project: str = "", head: str = HEAD, ade: str = ""
    ) -> Path:
        """A config package `mine` that is its own engine, with more lines for its tables."""
        folder = Path(tempfile.mkdtemp(prefix="package-", dir=self.room))
        settings = f'[tool.ade]\nengine = ""\ncommand = ["{{python}}"]\n{ade}\n'
        text = f'[project]\nname = "mine"\nversion = "1"\n{project}\n{settings}{head}'
        for name, content in {"pyproject.toml": text, "mine/__init__.py": "", **(files or {})}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        return folder

    async def emit(self, fact: Fact) -> None:
        self.facts.append(fact)
        if isinstance(fact, Output) and "waiting" in str(fact.line):
            self.waiting.set()

    async def build(self, plan: BuildPlan, limits: BuildLimits = LIMITS) -> Built:
        return await build(plan, self.emit, limits, self.canceled)

    async def hydrate(self, plan: BuildPlan) -> Built:
        return await hydrate(plan, self.emit, LIMITS, self.canceled)

    async def failure(self, plan: BuildPlan, limits: BuildLimits = LIMITS) -> BuildFailed:
        """The failure of a build, after which nothing of it may be left."""
        with pytest.raises(BuildFailed) as failure:
            await self.build(plan, limits)
        assert not plan.folder.exists()
        assert isinstance(last := self.facts[-1], StepFailed)
        assert last.message == failure.value.message
        return failure.value

    @property
    def lines(self) -> str:
        return "\n".join(str(getattr(fact.line, "message", "")) for fact in self.facts if isinstance(fact, Output))


@pytest.fixture
def bench(tmp_path: Path, cache_dir: Path) -> Bench:
    return Bench(tmp_path, cache_dir)


def says(plan: BuildPlan, program: str, *arguments: str) -> str:
    """What a program of the venv prints, away from the sources and without an environment."""
    command = [str(plan.folder / ".venv" / "bin" / program), *arguments]
    return subprocess.run(command, cwd="/", env={}, check=True, capture_output=True, text=True).stdout


def archive_of(source: Path, kind: str, into: Path) -> str:
    """A wheel or an sdist of a project, as an engine's maker would hand it over."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "build", "--quiet", f"--{kind}", "--no-create-gitignore", "--out-dir", into, source], check=True
    )
    (archive,) = into.iterdir()
    return str(archive)


def versions(built: Built) -> dict[str, str]:
    return {package.name: package.version for package in built.packages}


# What a build gives


async def test_a_config_that_is_its_own_engine(bench: Bench) -> None:
    plan = bench.plan(PACKAGES / "greeter")
    built = await bench.build(plan)
    assert [fact.step for fact in bench.facts if isinstance(fact, StepStarted)] == STEPS
    completed = {fact.step: fact for fact in bench.facts if isinstance(fact, StepCompleted)}
    assert list(completed) == STEPS
    assert completed["install_engine"].message == "the config is its own engine"
    assert completed["verify_imports"].message == "imported greeter"
    assert "Successfully built" in bench.lines
    assert versions(built) == {"greeter": "1.0.0"}
    assert built.python == await python_version(Path(sys.executable))
    assert str(bench.room) not in (plan.folder / "pylock.toml").read_text()  # its wheels may move with it
    assert usable(plan.folder)
    assert venv_python(plan.folder) == plan.folder / ".venv" / "bin" / "python"
    assert says(plan, "python", "-m", "greeter", str(bench.room)) == "hello\n"


@pytest.mark.parametrize("form", ["folder", "file URL", "wheel", "sdist"])
async def test_a_local_engine_in_every_form(bench: Bench, form: str) -> None:
    """What was made of it is kept, so that its folder may go."""
    source = shutil.copytree(PACKAGES / "echo_engine", bench.room / "my engine")
    engine = {"folder": str(source), "file URL": f"echo-engine @ {source.as_uri()}"}.get(form)
    plan = bench.plan(PACKAGES / "echo_config", engine or archive_of(source, form, bench.room / "made"))
    built = await bench.build(plan)
    assert versions(built) == {"echo-config": "1.0.0", "echo-engine": "2.1.0"}
    assert all(str(package.hash).startswith("sha256:") for package in built.packages)
    assert says(plan, "echo-engine") == says(plan, "python", "-m", "echo_engine") == "words of the config\n"

    shutil.rmtree(source)
    shutil.rmtree(plan.folder / ".venv")
    assert await bench.hydrate(plan) == built
    assert says(plan, "echo-engine") == "words of the config\n"


async def test_an_engine_from_the_registry_is_resolved_together_with_the_config(bench: Bench) -> None:
    """Asks the registry."""
    plan = bench.plan(bench.package(project='dependencies = ["idna<3.11"]'), "idna==3.10")
    built = await bench.build(plan)
    assert versions(built) == {"idna": "3.10", "mine": "1"}
    assert built.packages[0].hash == "sha256:946d195a0d259cbba61165e88e65941f16e9b36ea6ddb97f00452bae8b1287d3"
    shutil.rmtree(plan.folder / ".venv")
    assert await bench.hydrate(plan) == built

    shutil.rmtree(plan.folder)
    failure = await bench.failure(replace(plan, package=bench.package(project='dependencies = ["idna<3"]')))
    assert "depend on idna<3" in failure.message
    assert "you require idna==3.10" in failure.message


async def test_a_finished_build_is_found_and_not_made_again(bench: Bench) -> None:
    """The worker may die between the marker and the end of the build's log."""
    plan = bench.plan(PACKAGES / "greeter")
    built = await bench.build(plan)
    bench.facts.clear()
    assert await bench.build(plan) == await bench.hydrate(plan) == built
    assert bench.facts == []


async def test_a_venv_without_its_marker_is_deleted(bench: Bench) -> None:
    plan = bench.plan(PACKAGES / "greeter")
    await bench.build(plan)
    (plan.folder / ".venv" / "ade_build.json").rename(plan.folder / ".venv" / "ade_build.json.draft")
    junk = plan.folder / ".venv" / "lib" / "junk"
    junk.write_text("of a build that died")
    assert not usable(plan.folder)
    await bench.build(plan)
    assert usable(plan.folder)
    assert not junk.exists()


async def test_settings_of_a_project_around_the_data_folder_do_not_reach_the_installer(bench: Bench) -> None:
    (bench.room / "pyproject.toml").write_text('[tool.uv]\nrequired-version = "==0.1"\n')
    assert await bench.build(bench.plan(PACKAGES / "greeter"))


async def test_builds_share_the_cache(bench: Bench) -> None:
    """Asks the registry, once: what one build fetched another one has without it, as the same files on disk."""
    package = bench.package(project='dependencies = ["idna==3.10"]')
    first = bench.plan(package)
    await bench.build(first)
    offline = {**ENVIRONMENT, "UV_OFFLINE": "1"}
    second = replace(first, folder=first.folder.with_name("build_2"), build_id="build_2", installer_env=offline)
    await bench.build(second)
    module = "lib/python*/site-packages/idna/core.py"
    (one,), (other,) = (list((plan.folder / ".venv").glob(module)) for plan in (first, second))
    assert one.samefile(other)
    with pytest.raises(BuildFailed):
        await bench.build(replace(second, folder=first.folder.with_name("build_3"), cache_dir=bench.room / "empty"))


@pytest.fixture
def distant_cache_dir(tmp_path: Path) -> Iterator[Path]:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here: a cache on another one is not tested")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        yield Path(folder)


async def test_a_cache_on_another_file_system(bench: Bench, distant_cache_dir: Path) -> None:
    assert await bench.build(replace(bench.plan(PACKAGES / "greeter"), cache_dir=distant_cache_dir))
    assert "warning" not in bench.lines


async def test_imports_see_nothing_of_the_installer_environment(bench: Bench) -> None:
    """Index addresses hold passwords, and what is imported is the config's own code."""
    package = bench.package({"mine/__init__.py": "import os; print(sorted(os.environ), os.environ)"})
    index = "https://user:password@index.invalid/simple"
    await bench.build(replace(bench.plan(package), installer_env={**ENVIRONMENT, "UV_DEFAULT_INDEX": index}))
    assert "['ADE_BUILD_ID', 'HOME', 'LANG', 'PATH']" in bench.lines
    assert "password" not in bench.lines


@dataclass(frozen=True)
class Stranger:
    """Another account, a Python that it may run, and a folder that it may enter."""

    account: Account
    python: Path
    room: Path


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    if os.geteuid() != 0:
        pytest.skip("not root: imports under another account are not tested")
    nobody = pwd.getpwnam("nobody")
    for python in (sys.executable, "/usr/bin/python3"):
        check = [python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
        try:
            subprocess.run(check, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        with tempfile.TemporaryDirectory() as room:
            Path(room).chmod(0o755)
            yield Stranger(Account("nobody", nobody.pw_uid, nobody.pw_gid), Path(python), Path(room))
        return
    pytest.skip("no Python that the account nobody may run: imports under another account are not tested")


async def test_imports_run_under_the_account_of_runs(bench: Bench, stranger: Stranger) -> None:
    """The venv is readable for it, whatever the umask was, and has the bytecode that it could not write."""
    package = bench.package({"mine/__init__.py": "import os; print('account', os.getuid()); open('written', 'w')"})
    plan = bench.plan(package)
    plan = replace(plan, folder=stranger.room / "build", python=stranger.python, account=stranger.account)
    await bench.build(plan)
    assert f"account {stranger.account.uid}" in bench.lines
    assert list(plan.folder.glob(".venv/lib/python*/site-packages/mine/__pycache__/*.pyc"))


# What goes wrong


BACKEND = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


@dataclass(frozen=True)
class Mistake:
    step: str
    reason: str
    files: Mapping[str, str] = field(default_factory=dict)
    project: str = ""
    head: str = HEAD
    ade: str = ""
    engine: str | None = None


MISTAKES = {
    "missing requirement": Mistake(
        "install_config",
        "nosuch-package-of-ade-runs was not found in the package registry",
        project='dependencies = ["nosuch-package-of-ade-runs"]',
    ),
    "missing engine": Mistake(
        "install_engine",
        "nosuch-package-of-ade-runs was not found in the package registry",
        engine="nosuch-package-of-ade-runs>1",
    ),
    "engine that is no requirement": Mistake(
        "install_engine", "Failed to parse: `no requirement!`", engine="no requirement!"
    ),
    "missing folder": Mistake("install_engine", "there is nothing at /no/such/engine", engine="/no/such/engine"),
    "wrong Python": Mistake("install_config", "Python", project='requires-python = ">=4"'),
    "import error": Mistake(
        "verify_imports",
        "cannot import mine: ModuleNotFoundError: No module named 'nosuch'",
        {"mine/__init__.py": "import nosuch"},
    ),
    "syntax error": Mistake(
        "verify_imports",
        "cannot import mine: SyntaxError: invalid syntax (__init__.py, line 2)",
        {"mine/__init__.py": "\ndef f(:"},
    ),
    "exit": Mistake("verify_imports", "cannot import mine: SystemExit: 0", {"mine/__init__.py": "raise SystemExit(0)"}),
    "crash": Mistake("verify_imports", "ended by SIGABRT", {"mine/__init__.py": "import os; os.abort()"}),
    "missing module": Mistake("verify_imports", "No module named 'absent'", ade='imports = ["mine", "absent"]'),
    "broken pyproject": Mistake("install_config", "invalid type: integer", head="[build-system]\nrequires = 3"),
    "no modules": Mistake(
        "install_config", "Expected a Python module at", project="", head=HEAD + 'module-name = "no"'
    ),
    "failing build code": Mistake(
        "install_config",
        "ValueError: no good",
        {"backend.py": "def build_wheel(*args, **options):\n    raise ValueError('no good')"},
        head=BACKEND,
    ),
    "syntax error in build code": Mistake("install_config", "SyntaxError: ", {"backend.py": "x ="}, head=BACKEND),
}


@pytest.mark.parametrize("case", MISTAKES)
async def test_a_failed_build_says_why_and_leaves_nothing(bench: Bench, case: str) -> None:
    """The two that miss something ask the registry."""
    mistake = MISTAKES[case]
    package = bench.package(mistake.files, mistake.project, mistake.head, mistake.ade)
    failure = await bench.failure(bench.plan(package, mistake.engine))
    assert mistake.reason in failure.message
    assert "\n" not in failure.message
    assert failure.stop_reason == "failed"
    assert isinstance(last := bench.facts[-1], StepFailed)
    assert last.step == mistake.step


async def test_build_code_works_on_a_copy_of_what_the_digest_counts(bench: Bench) -> None:
    """It neither finds what an earlier build left beside the sources, nor leaves anything there."""
    found = "sorted({*os.listdir(), *os.listdir('mine')})"
    code = f"import os\ndef build_wheel(*args):\n    open('litter', 'w')\n    raise ValueError({found})"
    package = bench.package({"backend.py": code, "build/stale.py": "", "mine/stale.pyc": ""}, head=BACKEND)
    failure = await bench.failure(bench.plan(package))
    assert "['__init__.py', '__pycache__', 'backend.py', 'litter', 'mine', 'pyproject.toml']" in failure.message
    assert sorted(path.name for path in package.iterdir()) == ["backend.py", "build", "mine", "pyproject.toml"]


async def test_a_python_that_is_not_there(bench: Bench) -> None:
    plan = replace(bench.plan(PACKAGES / "greeter"), python=Path("/no/such/python"))
    assert "/no/such/python" in (await bench.failure(plan)).message
    with pytest.raises(CommandFailed, match="/no/such/python"):
        await python_version(plan.python)


@pytest.fixture
def endless(bench: Bench) -> Mapping[str, Path]:
    """Packages that wait for ever: one while it is built, one while it is imported."""
    os.mkfifo(bench.room / "never")
    wait = f"import os; print('waiting', os.getpid(), flush=True); open({str(bench.room / 'never')!r}).read()"
    return {
        "building": bench.package({"backend.py": f"def build_wheel(*args, **options):\n    {wait}"}, head=BACKEND),
        "importing": bench.package({"mine/__init__.py": wait}),
    }


def waiting_pid(lines: str) -> int:
    return int(lines.partition("waiting ")[2].split()[0])


@pytest.mark.parametrize("stage", ["building", "importing"])
async def test_a_canceled_build_leaves_nothing_and_can_be_made_again(
    bench: Bench, endless: Mapping[str, Path], stage: str
) -> None:
    plan = bench.plan(endless[stage])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.build, plan)
        with anyio.fail_after(60):
            await bench.waiting.wait()
        tasks.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(waiting_pid(bench.lines), 0)
    assert not plan.folder.exists()
    again = replace(bench.plan(PACKAGES / "greeter"), folder=plan.folder)
    assert versions(await bench.build(again)) == {"greeter": "1.0.0"}


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_build_that_is_asked_to_stop_is_signaled_first(bench: Bench, deaf: bool) -> None:
    """SIGTERM, after the grace SIGKILL to all that it started; which one, and that nothing of it lives, is told."""
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if deaf else ""
    code = f"import os, signal, time\n{ignoring}\nprint('waiting', os.getpid(), flush=True)\ntime.sleep(99)"
    plan = bench.plan(bench.package({"mine/__init__.py": code}))

    async def cancel() -> None:
        await bench.waiting.wait()
        bench.canceled.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        failure = await bench.failure(plan)
    assert failure.stop_reason == "canceled"
    assert [fact for fact in bench.facts if isinstance(fact, Signaled)] == [
        Signaled("SIGKILL" if deaf else "SIGTERM", survivors=0)
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(waiting_pid(bench.lines), 0)


async def test_a_build_has_a_time_limit_and_so_has_each_step(bench: Bench, endless: Mapping[str, Path]) -> None:
    plan = bench.plan(endless["importing"])
    failure = await bench.failure(plan, BuildLimits(timeout_s=2, grace_s=1))
    assert failure.stop_reason == "timeout"
    assert failure.message.startswith("It took longer than 2 s, and was in ")
    failure = await bench.failure(plan, BuildLimits(timeout_s=60, step_timeout_s=2, grace_s=1))
    assert failure.stop_reason == "timeout"
    assert failure.message == "The step verify_imports took longer than 2 s."


async def test_what_a_build_writes_has_a_limit_for_all_its_commands_together(bench: Bench) -> None:
    """The beginning is kept; how much is missing is told."""
    plan = bench.plan(bench.package({"mine/__init__.py": "for n in range(9): print('%099d' % n, flush=True)"}))
    await bench.build(plan, replace(LIMITS, log_max_bytes=1))
    gaps = [fact for fact in bench.facts if isinstance(fact, Gap)]
    assert sum(gap.bytes for gap in gaps) >= 9 * 99
    assert not bench.lines


async def test_what_a_gone_worker_left_running_is_ended_before_the_next_attempt(bench: Bench) -> None:
    """Its supervisor is stopped, so that it cannot do it."""
    plan = bench.plan(PACKAGES / "greeter")
    argv = (sys.executable, "-c", "print(flush=True); import time; time.sleep(99)")
    command = Command(argv, bench.room, {"ADE_BUILD_ID": plan.build_id})
    async with running(command) as left:
        await left.read()
        assert left.pid
        os.kill(parent_of(left.pid), signal.SIGSTOP)
        await bench.build(plan)
        assert bench.facts[0] == Signaled("SIGKILL", survivors=0)
        assert (await left.wait()).error


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


WORKER = """
import anyio, sys
from pathlib import Path
from service.work.builder import build
from tests.test_builder import LIMITS, Bench

async def emit(fact):
    print(fact, flush=True)

room, cache_dir, package = map(Path, sys.argv[1:])
anyio.run(lambda: build(Bench(room, cache_dir).plan(package), emit, LIMITS, anyio.Event()))
"""


def start_a_build_and_kill_its_worker(bench: Bench, package: Path) -> None:
    """Returns when what it had started is dead too."""
    command = [sys.executable, "-c", WORKER, str(bench.room), str(bench.cache_dir), str(package)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        said = next(line for line in worker.stdout if "waiting" in line)
        importing = os.pidfd_open(waiting_pid(said.replace("'", " ")))
        worker.kill()
    ended = select.poll()
    ended.register(importing, select.POLLIN)
    assert ended.poll(20_000), "what the killed worker had started lives on"
    os.close(importing)


async def test_a_killed_worker_leaves_no_process_and_the_next_one_builds(
    bench: Bench, endless: Mapping[str, Path]
) -> None:
    plan = bench.plan(PACKAGES / "greeter")
    start_a_build_and_kill_its_worker(bench, endless["importing"])
    assert (plan.folder / ".venv").exists()
    assert not usable(plan.folder)
    assert versions(await bench.build(plan)) == {"greeter": "1.0.0"}


# Hydration


async def test_a_venv_whose_python_went_away_is_made_again(bench: Bench) -> None:
    plan = bench.plan(PACKAGES / "greeter")
    built = await bench.build(plan)
    venv_python(plan.folder).unlink()
    venv_python(plan.folder).symlink_to("/no/such/python")
    assert not usable(plan.folder)
    bench.facts.clear()
    assert await bench.hydrate(plan) == built
    assert [fact.step for fact in bench.facts if isinstance(fact, StepCompleted)] == ["create_venv", "install_config"]
    assert says(plan, "python", "-m", "greeter", str(bench.room)) == "hello\n"


@pytest.mark.parametrize("harm", ["no lock", "no wheel", "another wheel"])
async def test_hydration_fails_clearly_when_what_it_needs_is_gone(bench: Bench, harm: str) -> None:
    plan = bench.plan(PACKAGES / "greeter")
    await bench.build(plan)
    shutil.rmtree(plan.folder / ".venv")
    (wheel,) = (plan.folder / "wheels" / "config").iterdir()
    match harm:
        case "no lock":
            (plan.folder / "pylock.toml").unlink()
        case "no wheel":
            wheel.unlink()
        case _:
            with zipfile.ZipFile(wheel, "a") as archive:
                archive.writestr("greeter/more.py", "")
    with pytest.raises(BuildFailed) as failure:
        await bench.hydrate(plan)
    assert {
        "no lock": "The venv of build_1 is gone, and its lock too: build the config again, with force.",
        "no wheel": "wheels/config/greeter-1.0.0-py3-none-any.whl",
        "another wheel": "Hash mismatch",
    }[harm] in failure.value.message
    assert not (plan.folder / ".venv").exists()


# The environment


def test_the_installer_gets_the_index_proxy_and_certificate_variables_and_no_others() -> None:
    forwarded = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "UV_DEFAULT_INDEX": "https://index/simple",
        "UV_INDEX": "https://more/simple",
        "UV_INDEX_MORE_PASSWORD": "p",
        "UV_OFFLINE": "1",
        "https_proxy": "http://proxy",
        "HTTPS_PROXY": "http://proxy",
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/ca.pem",
        "SSL_CERT_DIR": "/ca",
        "REQUESTS_CA_BUNDLE": "/ca.pem",
    }
    kept = {"LANG": "C.UTF-8", "UV_SYSTEM_CERTS": "1"}
    withheld = {
        "ADE_DATABASE_URL": "x",
        "ADE_SECRET_KEY": "x",
        "PYTHONPATH": "x",
        "UV_CACHE_DIR": "x",
        "UV_PYTHON": "x",
    }
    withheld |= {"VIRTUAL_ENV": "x", "LD_PRELOAD": "x", "UV_CONFIG_FILE": "x", "UV_PYTHON_DOWNLOADS": "x", "LANG": "de"}
    assert installer_environment(forwarded | withheld) == forwarded | kept


def test_pips_variables_count_where_those_of_uv_are_not_set() -> None:
    pip = {"PIP_INDEX_URL": "https://i", "PIP_EXTRA_INDEX_URL": "https://e", "PIP_CERT": "/pip.pem"}
    picked = installer_environment(pip)
    assert picked["UV_DEFAULT_INDEX"] == "https://i"
    assert picked["UV_EXTRA_INDEX_URL"] == "https://e"
    assert picked["SSL_CERT_FILE"] == "/pip.pem"
    assert picked["PATH"]
    ours = {"UV_DEFAULT_INDEX": "https://u", "SSL_CERT_FILE": "/ca.pem"}
    assert installer_environment(pip | ours).items() >= ours.items()
