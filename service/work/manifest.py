"""What a config package says of itself: `[project]` and `[tool.ade]` in its pyproject.toml, as one frozen Manifest."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from service.work.archive import BadPackage
from service.work.package import MANIFEST

MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_TIMEOUT_S: Final = 7 * 24 * 3600
MAX_ATTEMPTS: Final = 10

# The ADE engine's command lines: they hold for a package that names no command of its own.
_ENGINE: Final = ("{python}", "-m", "ade_engine")
_CONFIG: Final = ("--config-package", "{config_dir}", "--log-format", "ndjson")
DEFAULT_COMMAND: Final = (*_ENGINE, "process", "file", "--input", "{input}", "--output-dir", "{output_dir}", *_CONFIG)
DEFAULT_VALIDATE: Final = (*_ENGINE, "config", "validate", *_CONFIG)

PLACEHOLDERS: Final = frozenset({"python", "input", "inputs", "output_dir", "config_dir", "run_id"})
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

# What an engine's environment is made of already; a secret may not take its place.
_RESERVED: Final = re.compile(r"PATH|HOME|LANG|TZ|TRACEPARENT|PYTHON.*|(ADE|LD)_.*")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The settings of one config package.

    `engine` is a requirement; "" when the package is its own engine; None when ADE_ENGINE_SPEC holds.
    `validate` is empty when there is no such command. `imports` is None for the distribution's own top-level modules.
    `timeout_s` is None when ADE_RUN_TIMEOUT_SECONDS holds, `max_attempts` when ADE_RUN_MAX_ATTEMPTS does.
    """

    name: str
    version: str | None
    engine: str | None
    command: tuple[str, ...]
    validate: tuple[str, ...]
    imports: tuple[str, ...] | None
    secrets: tuple[str, ...]
    timeout_s: int | None
    max_attempts: int | None

    @classmethod
    def read(cls, package: Path) -> Self:
        """The manifest of the package in this folder. Raises BadPackage with the path of the key that is wrong."""
        document = _Document.load(package / MANIFEST)
        ade = document.tool.ade
        if ade.engine == "" and not ade.command:
            raise BadPackage(
                "bad-manifest", f"{MANIFEST}: tool.ade.command: a package that is its own engine needs one."
            )
        default_validate = () if ade.command else DEFAULT_VALIDATE
        return cls(
            name=document.project.name,
            version=document.project.version,
            engine=ade.engine,
            command=tuple(ade.command or DEFAULT_COMMAND),
            validate=tuple(default_validate if ade.validate_command is None else ade.validate_command),
            imports=None if ade.imports is None else tuple(ade.imports),
            secrets=tuple(ade.secrets),
            timeout_s=ade.timeout_s,
            max_attempts=ade.max_attempts,
        )

    @property
    def needs_input(self) -> bool:
        """Whether a run of this package must have a document."""
        return names_input(self.command)


def names_input(argv: Sequence[str]) -> bool:
    return any(name in ("input", "inputs") for argument in argv for name in _PLACEHOLDER.findall(argument))


def expand(
    argv: Sequence[str], *, python: Path, inputs: Sequence[Path], output_dir: Path, config_dir: Path, run_id: str
) -> tuple[str, ...]:
    """A command line with its placeholders filled in. ValueError when it names an input and there is none."""
    if names_input(argv) and not inputs:
        raise ValueError("the command names an input and the run has none")
    values: Mapping[str, str] = {
        "python": str(python),
        "input": str(inputs[0]) if inputs else "",
        "output_dir": str(output_dir),
        "config_dir": str(config_dir),
        "run_id": run_id,
    }
    expanded: list[str] = []
    for argument in argv:
        if argument == "{inputs}":
            expanded += map(str, inputs)
        else:  # in one pass: a file name with braces in it is not expanded again
            expanded.append(_PLACEHOLDER.sub(lambda found: values[found[1]], argument))
    return tuple(expanded)


def _check_argument(argument: str) -> str:
    for name in _PLACEHOLDER.findall(argument):
        if name not in PLACEHOLDERS:
            known = ", ".join(sorted(PLACEHOLDERS))
            raise PydanticCustomError("placeholder", f"{{{name}}} is not a placeholder; these are: {known}")
    if "{inputs}" in argument and argument != "{inputs}":
        raise PydanticCustomError("placeholder", "{inputs} expands to several arguments and must stand alone")
    if "\0" in argument:
        raise PydanticCustomError("argument", "an argument may not hold NUL")
    return argument


def _check_engine(engine: str) -> str:
    engine = engine.strip()
    if not engine.isprintable() or engine.startswith("-"):  # it becomes an argument of the installer
        raise PydanticCustomError("engine", "must be one requirement on one line")
    return engine


def _check_module(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise PydanticCustomError("module", "must be the dotted name of a module")
    return name


def _check_secret(name: str) -> str:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", name) or _RESERVED.fullmatch(name):
        raise PydanticCustomError(
            "secret", "must be an upper-case variable name that the engine's environment leaves free"
        )
    return name


class _Project(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    version: str | None = None


class _Ade(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    engine: Annotated[str, AfterValidator(_check_engine)] | None = None
    command: Annotated[list[Annotated[str, AfterValidator(_check_argument)]], Field(min_length=1)] | None = None
    validate_command: list[Annotated[str, AfterValidator(_check_argument)]] | None = Field(
        default=None, alias="validate"
    )
    imports: list[Annotated[str, AfterValidator(_check_module)]] | None = None
    secrets: list[Annotated[str, AfterValidator(_check_secret)]] = []
    timeout_s: int | None = Field(default=None, gt=0, le=MAX_TIMEOUT_S)
    max_attempts: int | None = Field(default=None, ge=1, le=MAX_ATTEMPTS)


class _Tool(BaseModel):
    ade: _Ade = _Ade()


class _Document(BaseModel):
    """A pyproject.toml, as far as it is ours."""

    project: _Project
    tool: _Tool = _Tool()

    @classmethod
    def load(cls, path: Path) -> Self:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadPackage("bad-manifest", f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes.")
        try:
            return cls.model_validate(tomllib.loads(path.read_text("utf-8")))
        except ValidationError as error:
            raise BadPackage("bad-manifest", f"{MANIFEST}: {_first_error(error)}.") from None
        except (ValueError, RecursionError) as error:
            raise BadPackage("bad-manifest", f"{MANIFEST} is not valid TOML: {error}.") from error


def _first_error(errors: ValidationError) -> str:
    """`tool.ade.command[3]: what is wrong`"""
    error = errors.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    plainly = {"extra_forbidden": "there is no such key", "missing": "is missing", "model_type": "must be a table"}
    return f"{path}: {plainly.get(error['type'], error['msg'])}"
