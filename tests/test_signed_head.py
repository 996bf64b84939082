"""Heads that are kept elsewhere, the commands for them, and the page that tells a third party how to verify."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner, Result

from eventstore import Append, NewEvent, Part
from eventstore.seals import GENESIS, Place, Sealer
from eventstore.signed_head import BadKey, Head
from projections import events, redaction
from service import commands
from service.cli import app
from tests.conftest import ROOT, Server, Store, open_store
from tests.histories import WORKSPACE, line, rows, run_created, run_started
from tests.test_docs import blocks
from tests.test_seals import tamper

RUN = "run_1"
PAGE = ROOT / "docs" / "chain.md"
HEAD = Head(log_id="log_0a", id=7, chain_hash="ab" * 32)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key and its public one, made as the reference says."""
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "key.pem", folder / "public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


# Signatures


def test_a_signature_is_of_one_head_by_one_key(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """It holds for the head as it was signed, by the key that is asked for, and for no other."""
    private, public = keys
    signed = HEAD.sign(private, "2026-11-20T04:19:05Z")
    assert signed.complaint() is None
    assert signed.complaint(public) is None
    assert Head.model_validate_json(signed.model_dump_json()) == signed
    for change in ({"id": 8}, {"log_id": "log_0b"}, {"chain_hash": "ac" * 32}, {"signed_at": "2026-11-21T04:19:05Z"}):
        assert signed.model_copy(update=change).complaint(public) is not None
    for signature in ("", "=", "AAAA", signed.signature[:-4] if signed.signature else ""):
        assert signed.model_copy(update={"signature": signature}).complaint(public) is not None
    stranger = tmp_path / "other.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", stranger)
    forged = HEAD.sign(stranger, "2026-11-20T04:19:05Z")
    assert forged.complaint() is None, "who makes up a head makes up a key"
    assert forged.complaint(public) is not None


def test_a_head_without_a_signature_is_good_for_who_asks_for_none(keys: tuple[Path, Path]) -> None:
    assert HEAD.complaint() is None
    assert HEAD.complaint(keys[1]) == "The head is not signed."
    assert HEAD.place == Place(7, b"\xab" * 32)


@pytest.mark.parametrize("what", ["nothing", "no key", "a public key", "another kind", "with a password"])
def test_what_is_no_signing_key_is_refused(keys: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    """With the sentence of the error, whatever the library says."""
    path = tmp_path / "key.pem"
    match what:
        case "no key":
            path.write_text("key")
        case "a public key":
            path.write_bytes(keys[1].read_bytes())
        case "another kind":
            openssl("genpkey", "-algorithm", "x25519", "-out", path)
        case "with a password":
            openssl("pkey", "-in", keys[0], "-aes256", "-passout", "pass:secret", "-out", path)
    with pytest.raises(BadKey, match="no Ed25519 key"):
        HEAD.sign(path, "now")
    with pytest.raises(BadKey, match="no Ed25519 key"):
        HEAD.model_copy(update={"signature": "AAAA"}).complaint(tmp_path / "nothing" if what == "nothing" else keys[0])


# A log with everything in it


@pytest.fixture
def told(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A log with control events, output, telemetry and a redaction; its URL."""

    monkeypatch.setattr(redaction, "PAGE_S", 0)  # there is no projector to wait for

    async def tell() -> None:
        async for store in open_store(url):
            await tell_all(store)

    anyio.run(tell)
    return url


async def tell_all(store: Store) -> None:
    async def append(stream: str, workspace: str, *told: NewEvent) -> None:
        await store.appender.append(Append((Part(stream, told, workspace=workspace),)))

    await append(
        f"workspace_{WORKSPACE}",
        WORKSPACE,
        events.DocumentStored(document_id="doc_1", name="a", size=1, sha256="00", media_type="text/plain").event(),
    )
    await append(
        "config_1",
        WORKSPACE,
        events.ConfigRegistered(
            workspace_id=WORKSPACE, name="c", version=1, digest="d", requested_by="anonymous"
        ).event(),
    )
    await append("system_log", "", events.SafeModeChanged(enabled=False, requested_by="anonymous").event())
    await append(RUN, WORKSPACE, run_created(), run_started())
    await append(RUN, WORKSPACE, *(line(RUN, text) for text in ("Adélie \u2028 企鵝", "secret", '"created_at":"', "")))
    await append(RUN, WORKSPACE, NewEvent("engine.empty", b"{}", bulk=True))
    await append(RUN, WORKSPACE, commands.run_completed("succeeded", "completed").event())
    asked = events.EventRedacted(stream=RUN, event_ids=[7], requested_by="test", reason="a password")
    assert (await redaction.redact(store.database, lambda *_: Path("nowhere"), asked)).by == 12


# The commands


class Ade:
    """`ade log …`, in this process, on the told log."""

    def __call__(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, ["log", *map(str, arguments)])


@pytest.fixture
def ade(told: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ade]:
    monkeypatch.setenv("ADE_DATABASE_URL", told)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield Ade()
    logging.root.handlers[:], logging.root.level = handlers, level


def test_a_sound_log(ade: Ade, told: str) -> None:
    """Exit code 0; how far it is sealed, and how many events are not."""
    found = ade("verify")
    assert (found.exit_code, found.stdout) == (
        0,
        "There was nothing to compare: no sealed event lies there.\nsealed up to 0; not sealed yet: 12\n",
    )
    assert json.loads(ade("head", "--json").stdout) == {
        "head": 12,
        "origin": None,
        "log_id": rows(told, "SELECT log_id FROM log")[0]["log_id"],
        "id": 0,
        "chain_hash": GENESIS.hex(),
    }
    anyio.run(seal, told)
    found = ade("verify")
    assert (found.exit_code, found.stdout) == (
        0,
        "✓ events 1 to 12 are as they were sealed\nsealed up to 12; not sealed yet: 0\n",
    )
    assert json.loads(ade("verify", "--from", 3, "--to", 9, "--json").stdout) == {
        "sound": True,
        "first_id": 1,
        "last_id": 9,
        "sealed_id": 12,
        "unsealed": 0,
        "head": [],
        "findings": [],
        "count": 0,
    }
    assert ade("head").stdout.endswith(" at 12, sealed up to 12\n")
    for first in (13, 5000):
        assert ade("verify", "--from", first).stdout.startswith("There was nothing to compare")


async def seal(url: str) -> None:
    async for store in open_store(url):
        await Sealer(store.database).catch_up()


def test_a_broken_log(ade: Ade, told: str) -> None:
    """Exit code 1, and what is wrong."""
    anyio.run(seal, told)
    tamper(told, "UPDATE events SET data = '{}' WHERE id >= 5", "DELETE FROM events WHERE id = 3")
    found = ade("verify")
    assert (found.exit_code, found.stdout.splitlines()[:2]) == (
        1,
        ["✗ event 3 is missing", "✗ event 5 is not what was sealed"],
    )
    document = json.loads(ade("verify", "--json").stdout)
    assert (document["sound"], document["count"]) == (False, 8)
    assert document["findings"][0] == {"id": 3, "what": "is missing"}
    tamper(told, "DELETE FROM events", "INSERT INTO events SELECT n, 'job_1', n, '', 'a.b', true, now(), '' FROM"
                 " generate_series(1, 12) AS n")  # fmt: skip
    assert ade("verify").exit_code == 1


def test_a_head_that_was_kept(
    ade: Ade,
    told: str,
    keys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signed, it says whose it is; the log that still holds its prefix passes, a rewritten one does not."""
    kept = tmp_path / "head.json"
    monkeypatch.setenv("ADE_SIGNING_KEY", str(keys[0]))
    made = ade("head", "--signed")
    kept.write_text(made.stdout)
    head = json.loads(made.stdout)
    assert list(head) == ["log_id", "id", "chain_hash", "signed_at", "public_key", "signature"]
    assert (head["id"], head["public_key"]) == (12, keys[1].read_text())
    monkeypatch.delenv("ADE_SIGNING_KEY")

    verify = ("verify", "--head", kept, "--public-key", keys[1])
    assert ade(*verify).exit_code == 0
    kept.write_text(json.dumps({**head, "id": 11}))
    assert "✗ The signature is not of this head, or not by this key." in ade(*verify).stdout
    kept.write_text(json.dumps({**head, "log_id": "log_0"}))
    assert "✗ The head is of another log, log_0." in ade(*verify).stdout
    kept.write_text(json.dumps({**head, "signature": None}))
    assert ade(*verify).exit_code == 1
    assert ade("verify", "--head", kept).exit_code == 0
    kept.write_text(made.stdout)
    tamper(told, "UPDATE events SET data = '{}' WHERE id = 5", "DELETE FROM seals")
    anyio.run(seal, told)
    assert ade("verify").exit_code == 0
    found = ade(*verify)
    assert (found.exit_code, found.stdout.splitlines()[0]) == (
        1,
        "✗ event 12 or one before it is another than when the head was kept",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("head", "--signed"),
        ("verify", "--head", "{folder}/nothing"),
        ("verify", "--head", "{folder}/no_head"),
        ("verify", "--head", "{folder}/head", "--from", "2"),
        ("verify", "--head", "{folder}/head", "--public-key", "{folder}/no_head"),
        ("verify", "--public-key", "{folder}/head"),
        ("verify", "--from", "0"),
        ("verify", "--from", "7", "--to", "6"),
        ("export", "--from", "7", "--to", "6"),
        ("redact", "run_1", "7"),
        ("redact", "run_1", "--reason", "x"),
        ("redact", "run_1", "7", "--reason", " "),
        ("redact", "run_1", "0", "--reason", "x"),
        ("redact", "run_1", "4", "--reason", "x"),
        ("redact", "run_2", "7", "--reason", "x"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(ade: Ade, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and nothing is written to the log."""
    signed = HEAD.model_copy(update={"signature": "AAAA"})
    (tmp_path / "head").write_text(signed.model_dump_json())
    (tmp_path / "no_head").write_text('{"id":1}')
    found = ade(*(argument.format(folder=tmp_path) for argument in arguments))
    assert found.exit_code == 2, found.output
    assert "Traceback" not in found.output
    assert json.loads(ade("head", "--json").stdout)["head"] == 12


@pytest.mark.parametrize(
    "arguments",
    [
        ("log", "head"),
        ("log", "head", "--json"),
        ("log", "verify"),
        ("log", "verify", "--tables"),
        ("log", "redact", "run_1", "7", "--reason", "x"),
        ("log", "export"),
        ("log", "export", "--audit"),
        ("log", "export", "--sqlite", "{folder}/log.db"),
        ("log", "rebuild"),
        ("keys", "list"),
        ("keys", "create", "--role", "admin", "--workspace", "*"),
        ("keys", "revoke", "key_1"),
        ("builds", "prune"),
        ("db", "backup", "{folder}/backup"),
    ],
)
def test_a_database_without_a_log_is_told(
    ade: Ade, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """The wrong folder, or the wrong address: exit code 2 and a sentence, not a traceback; and nothing is made."""
    assert ade("head").exit_code == 0
    monkeypatch.setenv("ADE_DATABASE_URL", server.url("postgres"))
    monkeypatch.setenv("ADE_DATA_DIR", str(tmp_path / "data"))
    found = CliRunner().invoke(app, [argument.format(folder=tmp_path) for argument in arguments])
    assert (found.exit_code, type(found.exception)) == (2, SystemExit), found.output
    assert "holds no log" in " ".join(found.output.split())
    assert list(tmp_path.glob("*.*")) == []


# The page


def test_the_verifier_of_the_page(
    ade: Ade, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing but an export, a head and a public key it says yes to what was written, and no to anything else."""
    program, head, log = (tmp_path / name for name in ("verifier.py", "head.json", "events.ndjson"))
    [code] = blocks(PAGE, "python")
    assert len(code.splitlines()) < 50
    program.write_text(code)
    monkeypatch.setenv("ADE_SIGNING_KEY", str(keys[0]))
    head.write_text(ade("head", "--signed").stdout)
    export = ade("export").stdout_bytes

    def verdict(of: bytes, says: bytes | None = None) -> subprocess.CompletedProcess[str]:
        log.write_bytes(of)
        told = head.read_bytes()
        head.write_bytes(says or told)
        command: list[str | Path] = [sys.executable, "-I", program, log, head, keys[1]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        head.write_bytes(told)
        return done

    good = verdict(export)
    assert (good.returncode, good.stderr) == (0, "")
    assert "events 1 to 12 are those of the head" in good.stdout
    *lines, last = export.splitlines(keepends=True)
    assert verdict(export + last.replace(b'"id":12', b'"id":13')).returncode == 0, "a log may grow"
    erased = json.loads(lines[6])
    for damaged, complaint in {
        export.replace(b'"size":1', b'"size":2'): "not the events of the head",
        export.replace(b'"seq":3', b'"seq":4'): "not the events of the head",
        export.replace(erased["redacted"].encode(), b"0" * 64): "not the events of the head",
        export.replace(b'"event_ids":[7]', b'"event_ids":[8]'): "not the events of the head",
        b"".join(lines): "not the events of the head",
        b"".join([*lines[:3], *lines[4:], last]): "event 4 is missing",
        b"".join([*lines[:-1], last, lines[-1]]): "event 11 is missing",
    }.items():
        assert damaged != export
        done = verdict(damaged)
        assert done.returncode != 0
        assert complaint in done.stderr
    assert verdict(export, head.read_bytes().replace(b'"id":12', b'"id":11')).returncode != 0


def test_the_commands_of_the_page(told: str, tmp_path: Path) -> None:
    """Typed in order, as a stranger would, they make a key, a signed head, and find the log sound."""
    env = {**os.environ, "ADE_DATABASE_URL": told, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "set -eu\n" + "\n".join(blocks(PAGE, "sh"))
    done = subprocess.run(["bash"], input=script, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "✓ events 1 to 12 are as they were sealed" in done.stdout
    assert list(tmp_path.iterdir()) == [], "an example litters the folder"
