"""What is in a venv, read from its files; nothing in it is run."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution
from itertools import product
from pathlib import Path
from typing import Any, Final

MODULE_SUFFIXES: Final = (".py", ".so")


@dataclass(frozen=True, slots=True)
class InstalledPackage:
    """`hash` is `sha256:<hex>` of the file that it was installed from; None where the lock knows none: a repository, a
    folder, an index without hashes."""

    name: str
    version: str
    hash: str | None


def installed_packages(venv: Path, lock: Path) -> tuple[InstalledPackage, ...]:
    """All distributions in the venv, by name, with their hashes from the `pylock.toml` beside it."""
    locked = {found["name"]: found for found in tomllib.loads(lock.read_text("utf-8")).get("packages", ())}
    packages = []
    for distribution in Distribution.discover(path=[str(_site_packages(venv))]):
        name = re.sub("[-_.]+", "-", distribution.name).lower()
        packages.append(InstalledPackage(name, distribution.version, _hash(distribution, locked.get(name, {}))))
    return tuple(sorted(packages, key=lambda package: package.name))


def top_level_modules(venv: Path, wheel: Path) -> tuple[str, ...]:
    """The names that a wheel has added to what can be imported."""
    name = wheel.name.split("-", 1)[0]
    (distribution,) = Distribution.discover(name=name, path=[str(_site_packages(venv))])
    tops = {file.parts[0].split(".")[0] for file in distribution.files or () if file.suffix in MODULE_SUFFIXES}
    return tuple(sorted(name for name in tops if name.isidentifier()))


def interpreter_version(venv: Path) -> str:
    """The full version of the Python that the venv was made with, such as 3.11.7."""
    lines = (venv / "pyvenv.cfg").read_text("utf-8").splitlines()
    return dict(line.split(" = ", 1) for line in lines)["version_info"]


def _site_packages(venv: Path) -> Path:
    (folder,) = venv.glob("lib/python*/site-packages")
    return folder


def _hash(distribution: Distribution, locked: Mapping[str, Any]) -> str | None:
    """Of the locked wheel that has the installed one's tags; else of the archive that a wheel was built from."""
    lines = (distribution.read_text("WHEEL") or "").splitlines()
    tags = {line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")}
    files = [wheel for wheel in locked.get("wheels", ()) if tags & _tags(wheel)]
    files += [locked[kind] for kind in ("archive", "sdist") if kind in locked]
    found = next((file["hashes"]["sha256"] for file in files if "sha256" in file.get("hashes", {})), None)
    return found and f"sha256:{found}"


def _tags(wheel: Mapping[str, Any]) -> set[str]:
    """`py2.py3-none-any` in a file name stands for two tags."""
    filename = (wheel.get("url") or wheel["path"]).rsplit("/", 1)[-1].removesuffix(".whl")
    return {"-".join(tag) for tag in product(*(part.split(".") for part in filename.split("-")[-3:]))}
