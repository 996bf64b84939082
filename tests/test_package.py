"""Config packages: archives from strangers, digests, manifests, fingerprints. No network."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.work.archive import BadPackage, PackageLimits
from service.work.fingerprint import LocalEngine, fingerprint
from service.work.manifest import DEFAULT_COMMAND, DEFAULT_VALIDATE, Manifest, expand
from service.work.package import digest, pack, source_files, unpack

PACKAGES = Path(__file__).parent / "packages"
MANIFEST = b'[project]\nname = "x"\n'
SMALL = PackageLimits(entries=50, unpacked_bytes=100_000)

Files = Mapping[str, bytes]


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, target, len(content)
    return made


def tar(*members: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, manifest: bool = True) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for entry in [(member("pyproject.toml", MANIFEST), MANIFEST)] * manifest + list(members):
            header, content = entry if isinstance(entry, tuple) else (entry, b"")
            archive.addfile(header, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def tar_files(files: Files) -> bytes:
    return tar(*((member(name, content), content) for name, content in files.items()), manifest=False)


def negative_size() -> bytes:
    """A tar whose second header has the size -512: tarfile of Python 3.11.7 would read it for ever."""
    header = bytearray(member("a").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return gzip.compress(member("pyproject.toml").tobuf() + header + bytes(1024))


def lzma_zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("pyproject.toml", MANIFEST)
    return packed.getvalue()


def zip_files(files: Files, modes: Mapping[str, int] | None = None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened(room: Path, archive: bytes, limits: PackageLimits = SMALL) -> Path:
    room.mkdir(exist_ok=True)
    (room / "archive").write_bytes(archive)
    unpack(room / "archive", room / "package", limits)
    return room / "package"


def refused(room: Path, archive: bytes, limits: PackageLimits = SMALL) -> BadPackage:
    """The refusal, after which nothing may be left of what was unpacked, here or beside."""
    beside = [name for name in names(room.parent) if name != room.name]
    with pytest.raises(BadPackage) as refusal:
        opened(room, archive, limits)
    assert names(room) == ["archive"]
    assert [name for name in names(room.parent) if name != room.name] == beside
    return refusal.value


# Archives


@pytest.mark.parametrize("archive", [tar_files, zip_files])
@pytest.mark.parametrize("top", ["", "./", "folder/"])
def test_either_format_with_or_without_a_top_folder_gives_the_same_package(
    tmp_path: Path, archive: Callable[[Files], bytes], top: str
) -> None:
    files = {"pyproject.toml": MANIFEST, "src/x/__init__.py": b"X = 1\n", "empty": b""}
    package = opened(tmp_path / "room", archive({top + name: content for name, content in files.items()}))
    assert {file.name: file.path.read_bytes() for file in source_files(package)} == files
    assert digest(package) == digest(write(tmp_path / "folder", files))


def test_only_the_executable_bit_of_a_mode_is_kept(tmp_path: Path) -> None:
    """setuid and world-writable do not pass; others may read, whatever the umask is."""
    script = member("run.sh", b"#!")
    script.mode, script.uid = 0o7777, 12345
    before = os.umask(0o077)
    try:
        package = opened(tmp_path / "room", tar((script, b"#!")))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [package, *package.iterdir()]}
    assert modes == {"package": 0o755, "run.sh": 0o755, "pyproject.toml": 0o644}
    assert (package / "run.sh").stat().st_uid == os.getuid()
    files = {"pyproject.toml": MANIFEST, "run.sh": b"#!"}
    assert digest(opened(tmp_path / "zip", zip_files(files, {"run.sh": stat.S_IFREG | 0o755}))) == digest(package)


def test_links_that_stay_inside_become_files(tmp_path: Path) -> None:
    package = opened(
        tmp_path / "room",
        tar(
            member("a/symbolic", kind=tarfile.SYMTYPE, target="../pyproject.toml"),
            member("hard", kind=tarfile.LNKTYPE, target="pyproject.toml"),
        ),
    )
    for name in ("a/symbolic", "hard"):
        assert (package / name).read_bytes() == MANIFEST
        assert not (package / name).is_symlink()
        assert (package / name).stat().st_nlink == 1


LINK = stat.S_IFLNK | 0o777
DEVICE = stat.S_IFCHR | 0o666

BROKEN: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "bad-archive", "neither"),
    "text": (b"hello\n", "bad-archive", "neither"),
    "gzip of text": (gzip.compress(b"hello\n" * 200), "bad-archive", "tar archive"),
    "gzip of nothing": (gzip.compress(b""), "bad-archive", "tar archive"),
    "plain tar": (gzip.decompress(tar()), "bad-archive", "neither"),
    "empty zip": (zip_files({}), "bad-manifest", "pyproject.toml"),
    "no manifest": (tar_files({"a": b"", "b": b""}), "bad-manifest", "pyproject.toml"),
    "manifest too deep": (tar_files({"a/b/pyproject.toml": MANIFEST}), "bad-manifest", "pyproject.toml"),
    "two top folders": (tar_files({"a/pyproject.toml": MANIFEST, "b/x": b""}), "bad-manifest", "pyproject.toml"),
    "absolute": (tar(member("/etc/evil")), "unsafe-entry", "'/etc/evil' leads out"),
    "parent": (tar(member("../evil")), "unsafe-entry", "'../evil' leads out"),
    "parent within": (tar(member("a/../../evil")), "unsafe-entry", "leads out"),
    "parent folder": (tar(member("../evil", kind=tarfile.DIRTYPE)), "unsafe-entry", "leads out"),
    "zip parent": (zip_files({"../evil": b""}), "unsafe-entry", "'../evil' leads out"),
    "zip absolute": (zip_files({"/evil": b""}), "unsafe-entry", "'/evil' leads out"),
    "backslash": (zip_files({"..\\evil": b""}), "unsafe-entry", "characters"),
    "newline": (tar(member("a\nb")), "unsafe-entry", r"'a\nb' has characters"),
    "escape": (tar(member("\x1b[2J")), "unsafe-entry", "characters"),
    "not unicode": (tar(member("\udcff")), "unsafe-entry", "characters"),
    "zip NUL": (zip_files({"a_b": b""}).replace(b"a_b", b"a\0b"), "unsafe-entry", "characters"),
    "long name": (tar(member("x" * 300)), "unsafe-entry", "too long"),
    "deep": (tar(member("d/" * 40 + "f")), "unsafe-entry", "too deep"),
    "symlink out": (tar(member("l", kind=tarfile.SYMTYPE, target="../x")), "unsafe-entry", "'l' leads out"),
    "absolute symlink": (tar(member("l", kind=tarfile.SYMTYPE, target="/etc/passwd")), "unsafe-entry", "leads out"),
    "hard link out": (tar(member("l", kind=tarfile.LNKTYPE, target="../../x")), "unsafe-entry", "leads out"),
    "zip symlink out": (zip_files({"l": b"/etc/passwd"}, {"l": LINK}), "unsafe-entry", "leads out"),
    "dangling": (tar(member("l", kind=tarfile.SYMTYPE, target="no")), "unsafe-entry", "does not point"),
    "link to folder": (tar(member("l", kind=tarfile.SYMTYPE, target=".")), "unsafe-entry", "does not point"),
    "link to itself": (tar(member("l", kind=tarfile.SYMTYPE, target="l")), "unsafe-entry", "does not point"),
    "through a link": (
        tar(member("l", kind=tarfile.SYMTYPE, target="."), member("l/evil")),
        "unsafe-entry",
        "as a file and as a folder",
    ),
    "device": (tar(member("d", kind=tarfile.CHRTYPE)), "unsafe-entry", "'d' is neither"),
    "pipe": (tar(member("p", kind=tarfile.FIFOTYPE)), "unsafe-entry", "'p' is neither"),
    "zip device": (zip_files({"d": b""}, {"d": DEVICE}), "unsafe-entry", "'d' is neither"),
    "twice": (tar(member("a"), member("./a")), "unsafe-entry", "'./a' is in the archive twice"),
    "file and folder": (tar(member("a"), member("a/b")), "unsafe-entry", "'a' is in the archive as a file"),
    "folder and file": (tar(member("a/b"), member("a")), "unsafe-entry", "twice"),
    "many files": (tar(*(member(f"f{n}") for n in range(60))), "package-too-large", "50 entries"),
    "many folders": (
        tar(*(member(f"{n}/" + "d/" * 20 + "f") for n in range(3))),
        "package-too-large",
        "50 entries",
    ),
    "bomb": (tar((member("zeros", bytes(10**7)), bytes(10**7))), "package-too-large", "100000 bytes"),
    "zip bomb": (zip_files({"zeros": bytes(10**7)}), "package-too-large", "100000 bytes"),
    "bomb of links": (
        tar(
            (member("a", bytes(60_000)), bytes(60_000)),
            *(member(f"l{n}", kind=tarfile.LNKTYPE, target="a") for n in range(9)),
        ),
        "package-too-large",
        "100000 bytes",
    ),
    "bomb after the end": (gzip.compress(gzip.decompress(tar()) + bytes(10**7)), "package-too-large", "100000 bytes"),
    "bomb in a header": (
        gzip.compress(member("h", bytes(10**7), kind=tarfile.XHDTYPE).tobuf() + bytes(10**7)),
        "bad-archive",
        "impossible size",
    ),
    "sparse": (gzip.compress(member("s", kind=tarfile.GNUTYPE_SPARSE).tobuf() + bytes(1024)), "unsafe-entry", "'s' is"),
    "negative size": (negative_size(), "bad-archive", "impossible size"),
    "lzma zip": (lzma_zip(), "bad-archive", "compressed in another way"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_archive_that_is_not_a_package_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    archive, slug, detail = BROKEN[case]
    refusal = refused(tmp_path / "room", archive)
    assert refusal.slug == slug
    assert detail in refusal.detail


@pytest.mark.parametrize("archive", [tar_files, zip_files])
def test_every_truncation_is_noticed(tmp_path: Path, archive: Callable[[Files], bytes]) -> None:
    whole = archive({"pyproject.toml": MANIFEST, "a.py": os.urandom(300)})
    assert opened(tmp_path / "whole", whole)
    for length in range(len(whole)):
        assert refused(tmp_path / "cut", whole[:length]).slug == "bad-archive"


def test_a_tar_that_was_cut_before_it_was_compressed_is_noticed(tmp_path: Path) -> None:
    """tarfile takes the end of the file, or a broken header, for the end of the archive."""
    whole = gzip.decompress(tar(member("a"), member("b")))[: 4 * 512]
    for length in (*range(512, 4 * 512, 100), 2 * 512, 4 * 512):
        assert "truncated" in refused(tmp_path / "room", gzip.compress(whole[:length])).detail
    damaged = bytearray(whole + bytes(1024))
    damaged[2 * 512] ^= 1
    assert "damaged" in refused(tmp_path / "room", gzip.compress(damaged)).detail


@settings(max_examples=150, deadline=None)
@given(data=st.data(), archive=st.sampled_from([tar_files, zip_files]))
def test_damage_of_any_kind_ends_in_a_refusal_or_a_package(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, archive: Callable[[Files], bytes]
) -> None:
    """Never in another exception, whatever the standard library makes of it."""
    content = archive({"pyproject.toml": MANIFEST, "folder/a.py": b"x = 1\n" * 20})
    raw = bytearray(gzip.decompress(content) if archive is tar_files else content)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 0x2D, 0x2F, 0x7F, 0x80, 0xFF]))
    if archive is tar_files:  # a checksum that holds lets the damage through to where it hurts
        for start in range(0, len(raw) - 511, 512):
            if raw[start + 257 : start + 262] == b"ustar":
                raw[start + 148 : start + 156] = b" " * 8
                raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
    room = tmp_path_factory.mktemp("room")
    try:
        opened(room, gzip.compress(raw, 1) if archive is tar_files else bytes(raw))
    except BadPackage:
        assert names(room) == ["archive"]


# What belongs to a package


def test_leftovers_of_tools_and_builds_do_not_belong(tmp_path: Path) -> None:
    ours = {"pyproject.toml": MANIFEST, "src/x/build/a.py": b"", "src/dist/b.py": b"", "build.py": b""}
    left = [".git/HEAD", "__pycache__/a.pyc", "src/x/__pycache__/a.pyc", "src/x/b.pyc", "build/lib/x.py", "dist/x.whl"]
    left += [".venv/bin/python", "env/pyvenv.cfg", "env/lib/x.py", "src/x.egg-info/PKG-INFO", "node_modules/y.js"]
    write(tmp_path, ours)
    before = digest(tmp_path)
    write(tmp_path, dict.fromkeys(left, b"left"))
    assert [file.name for file in source_files(tmp_path)] == sorted(ours)
    assert digest(tmp_path) == before


def test_a_link_in_a_folder_counts_as_its_file_and_may_not_leave(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", {"pyproject.toml": MANIFEST, "a": b"content"})
    copied = write(tmp_path / "copied", {"pyproject.toml": MANIFEST, "a": b"content", "link": b"content"})
    (folder / "link").symlink_to("a")
    assert digest(folder) == digest(copied)
    assert digest(opened(tmp_path / "room", pack(folder))) == digest(folder)
    write(tmp_path, {"secret": b""})
    for target in ("../secret", "no such file", "."):
        (folder / "link").unlink()
        (folder / "link").symlink_to(target)
        with pytest.raises(BadPackage, match="'link' is neither"):
            digest(folder)


def test_pack_refuses_what_unpack_would(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"has no pyproject\.toml"):
        pack(tmp_path)
    write(tmp_path, {"pyproject.toml": MANIFEST, "zeros": bytes(200_000)})
    with pytest.raises(BadPackage, match="100000 bytes"):
        pack(tmp_path, SMALL)


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join).map(lambda name: name + ".py")
FILES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=40), st.booleans()), max_size=5)


def laid_out(folder: Path, files: Mapping[str, tuple[bytes, bool]], order: list[str], mtime: int) -> Path:
    folder.mkdir()
    write(folder, {"pyproject.toml": MANIFEST})
    for name in order:
        content, executable = files[name]
        write(folder, {name: content})
        (folder / name).chmod(0o700 if executable else 0o600)
        os.utime(folder / name, (mtime, mtime))
    return folder


@settings(max_examples=60, deadline=None)
@given(files=FILES, data=st.data())
def test_the_digest_is_of_names_bits_and_content_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]], data: st.DataObject
) -> None:
    """Order, times and the way here change nothing; each single change of a file changes it."""
    room = tmp_path_factory.mktemp("room")
    first = laid_out(room / "first", files, sorted(files), 1_000_000_000)
    second = laid_out(room / "second", files, data.draw(st.permutations(sorted(files))), 1_500_000_000)
    assert digest(first) == digest(second) == digest(opened(room / "third", pack(first)))
    assert pack(first) == pack(second)
    changed = dict(files)
    name = data.draw(NAMES)
    content, executable = changed.get(name, (b"", False))
    match data.draw(st.sampled_from(["content", "bit", "name"])):
        case "content":
            changed[name] = (content + b"\0", executable)
        case "bit" if name in changed:
            changed[name] = (content, not executable)
        case _:
            changed.pop(name, None)
            changed["new" + name] = (content, executable)
    assert digest(laid_out(room / "changed", changed, sorted(changed), 0)) != digest(first)


# Manifests


def manifest(room: Path, ade: str) -> Manifest:
    write(room, {"pyproject.toml": f'[project]\nname = "x"\n[tool.ade]\n{ade}\n'.encode()})
    return Manifest.read(room)


def test_without_settings_of_its_own_a_package_is_for_the_ade_engine(tmp_path: Path) -> None:
    write(tmp_path, {"pyproject.toml": b'[project]\nname = "x"\nversion = "1.2"\n[tool.ruff]\nx = 1\n'})
    assert Manifest.read(tmp_path) == Manifest(
        "x", "1.2", None, DEFAULT_COMMAND, DEFAULT_VALIDATE, None, (), None, None
    )
    assert Manifest.read(tmp_path).needs_input


def test_all_settings(tmp_path: Path) -> None:
    read = manifest(
        tmp_path,
        """
        engine = " engine[fast]==1 "
        command = ["{python}", "run", "{inputs}", '{"json": 1}']
        validate = ["{python}", "check"]
        imports = ["a.b", "c"]
        secrets = ["PROVIDER_API_KEY"]
        timeout_s = 7
        max_attempts = 3
        """,
    )
    assert read == Manifest(
        "x",
        None,
        "engine[fast]==1",
        ("{python}", "run", "{inputs}", '{"json": 1}'),
        ("{python}", "check"),
        ("a.b", "c"),
        ("PROVIDER_API_KEY",),
        7,
        3,
    )
    assert read.needs_input


def test_a_package_with_its_own_command_has_no_validate_command_of_another_engine(tmp_path: Path) -> None:
    read = manifest(tmp_path, 'engine = ""\ncommand = ["{python}", "{output_dir}"]')
    assert (read.engine, read.validate, read.needs_input) == ("", (), False)
    assert manifest(tmp_path, 'engine = "fork-of-ade-engine"').validate == DEFAULT_VALIDATE


@pytest.mark.parametrize(
    ("ade", "detail"),
    [
        ("comand = []", "tool.ade.comand: there is no such key"),
        ('command = "python"', "tool.ade.command: Input should be a valid list"),
        ("command = []", "tool.ade.command: List should have at least 1 item"),
        ('command = ["x", 1]', "tool.ade.command[1]: Input should be a valid string"),
        ('command = ["{pyhton}"]', "tool.ade.command[0]: {pyhton} is not a placeholder; these are: config_dir, input"),
        ('command = ["x", "--in={inputs}"]', "tool.ade.command[1]: {inputs} expands to several arguments"),
        ('validate = ["{x}"]', "tool.ade.validate[0]: {x} is not a placeholder"),
        ('engine = ""', "tool.ade.command: a package that is its own engine needs one"),
        ('engine = "-r/etc/passwd"', "tool.ade.engine: must be one requirement"),
        ('engine = "a\\nb"', "tool.ade.engine: must be one requirement"),
        ('imports = ["a-b"]', "tool.ade.imports[0]: must be the dotted name"),
        ('secrets = ["PATH"]', "tool.ade.secrets[0]: must be an upper-case"),
        ('secrets = ["PYTHONSTARTUP"]', "tool.ade.secrets[0]: must be an upper-case"),
        ('timeout_s = "5"', "tool.ade.timeout_s: Input should be a valid integer"),
        ("timeout_s = true", "tool.ade.timeout_s: Input should be a valid integer"),
        ("max_attempts = 0", "tool.ade.max_attempts: Input should be greater than or equal to 1"),
        ("timeout_s = 0", "tool.ade.timeout_s: Input should be greater than 0"),
        ("timeout_s = 99999999", "tool.ade.timeout_s: Input should be less than"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(tmp_path: Path, ade: str, detail: str) -> None:
    with pytest.raises(BadPackage) as refusal:
        manifest(tmp_path, ade)
    assert refusal.value.slug == "bad-manifest"
    assert detail in refusal.value.detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (b"[project", "not valid TOML"),
        (b"\xff", "not valid TOML"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (b"#" * 300_000, "larger than 262144 bytes"),
        (b"", "project: is missing"),
        (b"[project]", "project.name: is missing"),
        (b'[project]\nname = "a b"', "project.name: String should match"),
        (b'[project]\nname = "x"\n[tool]\nade = 1', "tool.ade: must be a table"),
    ],
)
def test_a_pyproject_that_is_none(tmp_path: Path, text: bytes, detail: str) -> None:
    write(tmp_path, {"pyproject.toml": text})
    with pytest.raises(BadPackage) as refusal:
        Manifest.read(tmp_path)
    assert detail in refusal.value.detail


def test_placeholders_are_filled_in_once() -> None:
    def filled(*argv: str, inputs: tuple[str, ...] = ("in/{run_id}", "b")) -> tuple[str, ...]:
        paths = [Path(name) for name in inputs]
        return expand(
            argv, python=Path("/v/python"), inputs=paths, output_dir=Path("/o"), config_dir=Path("/c"), run_id="run_1"
        )

    assert filled("{python}", "-o={output_dir}", "{inputs}", "{config_dir}/{run_id}", "{}", "{x: 1}") == (
        *("/v/python", "-o=/o", "in/{run_id}", "b", "/c/run_1", "{}", "{x: 1}"),
    )
    assert filled("--input={input}") == ("--input=in/{run_id}",)
    assert filled("{run_id}", inputs=()) == ("run_1",)
    for argument in ("{input}", "{inputs}"):
        with pytest.raises(ValueError, match="names an input"):
            filled(argument, inputs=())


# Fingerprints


def test_a_local_engine_counts_by_content_and_a_requirement_by_its_text(tmp_path: Path) -> None:
    def of(engine: str | None) -> str:
        return fingerprint("digest", engine, "3.11.7")

    folder = write(tmp_path / "an engine", {"pyproject.toml": MANIFEST, "e.py": b"1"})
    wheel = write(tmp_path, {"e-1-py3-none-any.whl": b"1"}) / "e-1-py3-none-any.whl"
    for local, changed in ((folder, folder / "e.py"), (wheel, wheel)):
        first = of(str(local))
        os.utime(changed, (0, 0))
        write(folder, {"__pycache__/e.pyc": b"x"})
        assert of(local.as_uri()) == of(f"./{os.path.relpath(local)}") == first
        assert of(f"e[fast] @ {local.as_uri()}") != first
        changed.write_bytes(b"2")
        assert of(str(local)) != first
    assert len({of(None), of("e"), of("e==1"), of("missing"), of(str(tmp_path / "missing"))}) == 5
    assert of(None) == of("")
    assert fingerprint("digest", "e", "3.12.1") != of("e") != fingerprint("other", "e", "3.11.7")


@pytest.mark.parametrize(
    ("engine", "local"),
    [
        ("/srv/engine", LocalEngine(None, Path("/srv/engine"))),
        ("file:///srv/my%20engine#egg=x", LocalEngine(None, Path("/srv/my engine"))),
        ("ade-engine @ file:///srv/engine", LocalEngine("ade-engine", Path("/srv/engine"))),
        ("ade-engine[a,b] @ /srv/e.whl", LocalEngine("ade-engine[a,b]", Path("/srv/e.whl"))),
        ("engines/mine", LocalEngine(None, Path.cwd() / "engines/mine")),
        ("mine.whl", LocalEngine(None, Path.cwd() / "mine.whl")),
        ("idna==3.10", None),
        ("idna[x]>=3,<4", None),
        ("e @ git+https://example.org/e.git@v1", None),
        ("https://example.org/e-1-py3-none-any.whl", None),
    ],
)
def test_what_an_engine_requirement_means(engine: str, local: LocalEngine | None) -> None:
    assert LocalEngine.of(engine) == local
