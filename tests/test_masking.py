"""No secret is read in a log: in whatever writing, wherever a chunk or a part was cut, before anything is stored."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from urllib.parse import quote, quote_plus

import httpx
import orjson
import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from service.settings import Settings
from service.work.lines import Fact, Line, LineSplitter, Telemetry
from service.work.masking import MATCH_BYTES, BadPattern, LineMask, Mask, credentials, patterns_of, unmaskable
from tests import engine
from tests.conftest import Server, Service, own_service

TOKEN = "pygoscelis-31415926"
AWKWARD = 'pa"ss\\w/ord &é😀\t{+}=%'
PIN = "271828182845"
PEM = "\n".join(["-----BEGIN KEY-----", *(base64.b64encode(bytes([n]) * 48).decode() for n in range(9)), "tail", ""])
SECRETS = {"token": TOKEN, "awkward": AWKWARD, "pin": PIN, "pem": PEM.strip()}


def in_base64(before: int, encode: Callable[[bytes], bytes]) -> Callable[[str], str]:
    """Base64 of a secret among other bytes, without the characters that it shares with those."""

    def written(secret: str) -> str:
        text = encode(b"\xfb" * before + secret.encode() + b"\xef\xbe")
        return text[(0, 2, 3)[before] : (before + len(secret.encode())) * 8 // 6].decode()

    return written


WRITINGS: dict[str, Callable[[str], str]] = {
    "json": lambda secret: json.dumps(secret)[1:-1],
    "json, unicode": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "json, slashes": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/").replace("&", "\\u0026"),
    "json in json": lambda secret: json.dumps(json.dumps(secret))[3:-3],
    "url": quote,
    "url, all": lambda secret: quote(secret, safe=""),
    "url, lower": lambda secret: "".join(c if c.isalnum() and c.isascii() else quote(c, "").lower() for c in secret),
    "url, form": quote_plus,
    "url in url": lambda secret: quote(quote(secret, safe=""), safe=""),
    "hex": lambda secret: secret.encode().hex(),
    "hex, upper": lambda secret: secret.encode().hex().upper(),
    **{f"base64, {before}": in_base64(before, base64.b64encode) for before in range(3)},
    **{f"base64 for a url, {before}": in_base64(before, base64.urlsafe_b64encode) for before in range(3)},
}

unhurried = settings(deadline=None)  # other programs share the machine


def said(facts: list[Fact]) -> str:
    """All that some facts tell, as it is stored."""
    return "\n".join(
        orjson.dumps({fact.type: fact.members}).decode() if isinstance(fact, Telemetry) else fact.message
        for fact in facts
    )


def split(output: bytes, *cuts: int, mask: Mask, **limits: int) -> list[Fact]:
    """The facts of an output that arrives in chunks, cut at these places."""
    splitter = LineSplitter("stdout", mask=mask, **limits)
    edges = [0, *sorted(cut % (len(output) + 1) for cut in cuts), len(output)]
    facts = [fact for begin, end in pairwise(edges) for fact in splitter.feed(output[begin:end])]
    return facts + splitter.close()


# In which writings


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_every_writing_of_a_secret_is_hidden(writing: str, name: str) -> None:
    """Alone, and in the middle of others that have nothing to do with it."""
    written = WRITINGS[writing](SECRETS[name])
    mask = Mask(SECRETS.values())
    assert written not in mask.text(f"before {written} behind")
    assert mask.text(f"<{written}>").strip("<>").count("*") == len(mask.text(f"<{written}>")) - 2


@pytest.mark.parametrize("name", SECRETS)
def test_every_line_of_a_secret_is_hidden(name: str) -> None:
    """As it is; a line of less than six bytes shows. So it does when base64 was wrapped."""
    mask = Mask([SECRETS[name]])
    lines = SECRETS[name].split("\n")
    assert [mask.text(f"<{line}>") for line in lines] == ["<***>" if len(line) >= 6 else f"<{line}>" for line in lines]
    for columns in (64, 76):
        encoded = base64.b64encode(SECRETS[name].encode()).decode()
        wrapped = [encoded[start : start + columns] for start in range(0, len(encoded), columns)]
        assert [line for line in wrapped if len(line) > 6 and mask.text(line) != "***"] == []


def test_overlapping_secrets_are_hidden_together() -> None:
    """Neither their order nor their lengths leave the end of one of them."""
    for secrets in (["abcdefgh", "fghijklm"], ["fghijklm", "abcdefgh"], ["abcdefghijklm", "defghi"]):
        assert Mask(secrets).text("-abcdefghijklm-") == "-***-"


@pytest.mark.parametrize("size", [12, 13, 14])
@pytest.mark.parametrize("before", range(3))
def test_a_secret_behind_itself_is_hidden_in_base64(before: int, size: int) -> None:
    """What one takes of the character behind it is not missed where the next one begins; four bits may show."""
    secret = (TOKEN * 2)[:size]
    hidden = Mask([secret]).text(base64.b64encode(b"\xfb" * before + secret.encode() * 5 + b"\xef\xbe").decode())
    assert len(hidden.replace("***", "").rstrip("=")) <= (0, 2, 3)[before] + 4, hidden


def test_nothing_to_hide() -> None:
    assert not Mask()
    assert Mask().text("a") == "a"
    assert Mask(["secret"]).text("a line") == "a line"
    assert Mask(patterns=["(?=l)"]).text("a line") == "a line"


def test_values_are_hidden_in_what_they_hold() -> None:
    """In strings, keys and numbers; what has none of them stays as it was."""
    value = {"a": [TOKEN, 1, None, True, 1.5], f"key {TOKEN}": {"pin": int(PIN), "in": float(PIN + ".5")}}
    hidden = {"a": ["***", 1, None, True, 1.5], "key ***": {"pin": "***", "in": "***.5"}}
    assert Mask(SECRETS.values()).value(value) == hidden


def test_a_run_of_backslashes_takes_no_time() -> None:
    """Many ways to share them out, one to find them."""
    secret = "\\" * 40 + "end"
    mask = Mask([secret])
    assert mask.text(f"{json.dumps(secret)} {secret}") == '"***" ***'
    assert mask.text("\\" * 5000 + "ned end") == "\\" * 5000 + "ned end"


# Wherever it was cut


OUTPUT = st.lists(
    st.one_of(
        st.sampled_from([AWKWARD, TOKEN, PIN, f'{{"event":"engine.a","m":{json.dumps("x" + AWKWARD)}}}']),
        st.sampled_from(["\n", "\n", "\r", " ", "x" * 11, "é", "\n{", TOKEN[:9], AWKWARD[:5]]),
    ),
    max_size=12,
).map(lambda pieces: "".join(pieces).encode())


@unhurried
@given(OUTPUT, st.lists(st.integers(min_value=0), max_size=8))
@example(TOKEN.encode() * 3, list(range(60)))
def test_no_cut_shows_a_secret(output: bytes, cuts: list[int]) -> None:
    """Not the end of a chunk, nor that of a part; and the facts depend on the bytes alone."""
    mask = Mask([AWKWARD, TOKEN, PIN])
    small = {"part_bytes": 7, "telemetry_max_bytes": 80, "states_max": 3}
    facts = split(output, *cuts, mask=mask, **small)
    assert facts == split(output, mask=mask, **small)
    text = "".join(fact.message for fact in facts if isinstance(fact, Line)) + said(facts)
    assert [secret for secret in (AWKWARD, TOKEN, PIN, json.dumps(AWKWARD)[1:-1]) if secret in text] == []


@pytest.mark.parametrize("edge", [65_536, 131_072, 196_608, 1_048_576])
def test_a_secret_across_an_edge_of_a_long_line(edge: int) -> None:
    """Of a part, of what a mask looks at, of what telemetry may have. A mask per part would show both halves."""
    mask = Mask([TOKEN], [r"(?<=card=)\d{12}"])
    for start in (b"x", b"{"):
        for place in (edge + at for at in (-30, -24, -17, -5, -3, 0, 2)):
            line = start * place + b"card=123456789012 " + TOKEN.encode() + b"y" * 70_000
            for step in (10_000, 65_536, len(line)):
                facts = split(line + b"\n", *range(0, len(line), step), mask=mask)
                text = "".join(fact.message for fact in facts if isinstance(fact, Line))
                assert text == (start * place).decode() + "card=*** ***" + "y" * 70_000
                assert [fact.part for fact in facts if isinstance(fact, Line)] == list(range(1, len(facts) + 1))


@pytest.mark.parametrize("size", [65_537, 131_071, 131_072, 200_000])
def test_a_long_line_without_an_end_is_told(size: int) -> None:
    """Also what was held for the mask alone."""
    facts = split(b"x" * (size - 30) + TOKEN.encode() + b"y" * 11, mask=Mask([TOKEN]))
    assert "".join(fact.message for fact in facts if isinstance(fact, Line)) == "x" * (size - 30) + "***" + "y" * 11


def test_a_long_line_is_masked_in_bounded_memory() -> None:
    """And as it comes: what a match could need is held, not more."""
    masked, size, told = LineMask(Mask([TOKEN])), 0, 0
    for _ in range(1000):
        told += len(masked.feed(b"x" * 9_981 + TOKEN.encode()))
        size = max(size, len(masked._held))
    assert size < 2 * MATCH_BYTES
    assert told + len(masked.end()) == 1000 * (9_981 + 3)


def test_a_match_without_an_end_hides_the_rest_of_its_line() -> None:
    """What a pattern would go on to match, if more of the line were in sight, is not shown for want of room."""
    mask = Mask(patterns=[r"Bearer \S+"])
    facts = split(b"a Bearer " + b"x" * 500_000 + b" b\nnext Bearer x y\n", mask=mask)
    assert facts == [Line("stdout", "a ***"), Line("stdout", "next *** y")]


# Patterns


def test_a_pattern_is_for_one_line() -> None:
    """Its ends are the line's, and what it matches never takes a line end with it."""
    mask = Mask(patterns=[r"^key=.*$", r"(?s)BEGIN.*", r"\s*;\s*"])
    facts = split(b"key=1\r\nmy key=1\nkey=2\na BEGIN b\nc\n ; \n", mask=mask)
    assert said(facts).split("\n") == ["***", "my key=1", "***", "a ***", "c", "***"]


def test_a_pattern_leaves_telemetry_what_it_is() -> None:
    """It is asked about each text in it, not about the line, of which it might take a quote."""
    mask = Mask([TOKEN], [r"password=.*"])
    line = orjson.dumps({"event": "engine.a", "message": "password=x", "data": {"n": [f"the {TOKEN}"]}})
    assert split(line, mask=mask) == [Telemetry("stdout", "engine.a", {"message": "***", "data": {"n": ["the ***"]}})]
    assert split(b'{"event":"engine.a","m":"password=x"}', mask=mask) == [Telemetry("stdout", "engine.a", {"m": "***"})]
    hidden = f'{{"event":"engine.{PIN}"}}'.encode()
    assert split(hidden, mask=Mask([PIN])) == [Line("stdout", '{"event":"engine.***"}')]


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        (None, []),
        ("", []),
        ("[A-Z]{20}", ["[A-Z]{20}"]),
        (" a+ \n\n[1]\n", ["a+", "[1]"]),
        ('["a\\nb", "[1]"]', ["a\nb", "[1]"]),
        ("[1]", ["[1]"]),
    ],
)
def test_patterns_in_a_setting(text: str | None, patterns: list[str]) -> None:
    assert patterns_of(text) == patterns


@pytest.mark.parametrize(("pattern", "why"), [("(", "is no regular expression: missing )"), ("x*", "matches nothing")])
def test_a_bad_pattern_is_refused_at_the_start(pattern: str, why: str) -> None:
    with pytest.raises(BadPattern, match="the pattern"):
        Mask(patterns=[pattern])
    with pytest.raises(ValueError, match=why.replace(")", r"\)")):
        Settings(mask_patterns=f"fine\n{pattern}")


# What can be hidden


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("12345", "has less than 6 bytes"),
        ("éé1é", None),
        ("  12345  ", "has less than 6 bytes"),
        ("a\nb\nc\nd\n", "has less than 6 bytes in each of its lines"),
        ("a\n123456", None),
        ("x" * 16_384, None),
        ("x" * 16_385, "has more than 16384 bytes"),
        (os.fsdecode(b"binary \xff"), "is not UTF-8"),
    ],
)
def test_what_cannot_be_hidden(secret: str, why: str | None) -> None:
    assert unmaskable(secret) == why


def test_credentials_of_an_installer() -> None:
    """In addresses, encoded or not, and in variables that are named for it."""
    environment = {
        "UV_DEFAULT_INDEX": "https://me:pass%2Fword@index.example/simple",
        "UV_INDEX": "a=https://token-of-a@a.example/ https://b.example:443/@scope/",
        "UV_INDEX_A_PASSWORD": "password-of-a",
        "HTTPS_PROXY": "http://u:short@proxy.example",
        "UV_INDEX_A_USERNAME": "somebody",
        "PATH": "/usr/bin",
    }
    assert sorted(credentials(environment)) == ["pass/word", "password-of-a", "token-of-a"]


# Through the whole service

INDEX_PASSWORD = "aptenodytes-1914"
CARD = "411111111111"
BACKEND = "import os\nfrom uv_build import *\nprint(sorted(os.environ), os.environ['UV_INDEX_MINE_PASSWORD'])\n"
SERVICE_ONLY = ("ADE_DATABASE_URL", "ADE_DATA_DIR", "ADE_API_KEY", "PGPASSWORD", "PGPASSFILE", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(scope="module")
def service(server: Server) -> Iterator[Service]:
    """One that has secrets, and much in its environment that is nobody else's."""
    told = {f"ADE_SECRET_{name.upper()}": secret for name, secret in SECRETS.items()}
    told |= dict.fromkeys(SERVICE_ONLY[2:], "spheniscus-1758")
    index = {"UV_INDEX_MINE_PASSWORD": INDEX_PASSWORD, "ADE_MASK_PATTERNS": r"(?<=card=)\d{12}"}
    with own_service(server, **told, **index) as running:
        yield running


@pytest.fixture(scope="module")
def config(http: httpx.Client) -> str:
    """An engine that does what its argument says, and gets the secrets; what builds it tells its environment."""
    files = engine.files_of(engine.ENGINES / "actor")
    project = bytes(files["pyproject.toml"]).decode()  # type: ignore[arg-type]  # they were read as bytes
    project = project.replace('build-backend = "uv_build"', 'build-backend = "backend"\nbackend-path = ["."]')
    project += f"secrets = {json.dumps([name.upper() for name in SECRETS])}\n"
    config_id: str = engine.register(http, {**files, "pyproject.toml": project, "backend.py": BACKEND})["id"]
    return config_id


def stored(service: Service) -> Iterator[tuple[str, bytes]]:
    """All that the service keeps: every row of every table, every file."""
    with psycopg.connect(service.database_url) as connection:
        tables = connection.execute(b"SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for (row,) in connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))):
                yield table, row.encode()
    for path in service.data.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def test_nothing_that_is_stored_holds_a_secret(service: Service, http: httpx.Client, config: str) -> None:
    """An engine writes each in every way and place: the lines are there, the secrets are not. All is searched."""
    # The script names no secret, because arguments are on record.
    written = {name: [secret, *(write(secret) for write in WRITINGS.values())] for name, secret in SECRETS.items()}
    script = """
names = ("TOKEN", "AWKWARD", "PIN", "PEM")
import base64, urllib.parse
def writings(s):
    d = s.encode()
    yield from (json.dumps(s), json.dumps(s, ensure_ascii=False), json.dumps(json.dumps(s)), d.hex(), d.hex().upper())
    yield from (urllib.parse.quote(s), urllib.parse.quote(s, ''), urllib.parse.quote_plus(s))
    for n in range(3):
        yield base64.b64encode(b'u' * n + d + b'zz').decode()
        yield base64.urlsafe_b64encode(b'u' * n + d + b'zz').decode()
    yield base64.encodebytes(d).decode()
    yield s
for name in names:
    secret = os.environ[name]
    for text in writings(secret):
        print('as', text)
        print('as', text, file=sys.stderr)
    one = secret.split('\\n')[0].encode()
    write(b'x' * 65530 + one + b'y' * 65517 + one + b'\\n')
    for at in range(1, len(one), 4):
        write(one[:at]); time.sleep(0.002); write(one[at:] + b'\\n')
    write(one + b'\\r' + one + b'\\r\\n')
    tell(event='engine.told', message=secret, data={secret: [secret]})
token, pin = os.environ['TOKEN'], os.environ['PIN']
print('card=411111111111;')
tell(event='engine.run.completed', message='sum of ' + token, data={'pin': int(pin), 'card': 'card=411111111111'})
(output / token).write_text('')
sys.stderr.write('x' * 65530 + token)
sys.exit(3)
"""
    script = script.replace("411111111111", "'+str(411111111110+1)+'")
    run, events = engine.run(http, config, script)
    assert (run["status"], run["exit_code"]) == ("failed", 3), run
    lines = [event["message"] for event in events if event["type"] == "run.log"]
    assert lines.count("as ***") > 40
    assert "card=***;" in lines
    assert "***" in run["error_message"] or run["error_message"].endswith("x***"), run["error_message"]
    assert run["result"] == {"pin": "***", "card": "card=***"}
    assert next(filter(engine.is_type("run.artifact"), events))["name"] == "***"
    file = service.data / "runs" / engine.WORKSPACE / run["id"] / "events.ndjson"
    engine.eventually(lambda: file.exists() and b"run.completed" in file.read_bytes(), "the log file is written")
    looked_for = {form for forms in written.values() for form in forms} | set(PEM.split("\n")[1:-2])
    looked_for |= {INDEX_PASSWORD, "=" + CARD, "spheniscus-1758"}
    needles = [json.dumps(form, ensure_ascii=False)[1:-1].encode() for form in looked_for]
    needles += [form.encode() for form in looked_for]
    found = [(place, needle) for place, text in stored(service) for needle in needles if needle in text]
    assert found == []


def test_what_an_engine_is_given(http: httpx.Client, config: str) -> None:
    """These variables exactly."""
    _, events = engine.run(http, config, "print(json.dumps(sorted(os.environ)))")
    names = json.loads(next(filter(engine.is_type("run.log"), events))["message"])
    own = ["ADE_RUN_ID", "HOME", "LANG", "PATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "TRACEPARENT", "TZ"]
    assert set(names) - {"LC_CTYPE"} == {*own, *(name.upper() for name in SECRETS)}


def test_what_an_installer_is_given(service: Service, http: httpx.Client, config: str) -> None:
    """Variables of indexes, proxies and certificates, and what uv adds; and what it is given shows in no log."""
    build = engine.build(http, config, force=True)
    said = [orjson.loads(line) for line in engine.feed(http, build["id"])]
    (line,) = {one["message"] for one in said if "UV_INDEX_MINE_PASSWORD" in one.get("message", "")}
    assert line.endswith("] ***")
    assert [name for name in SERVICE_ONLY if name in line] == []
    names = set(json.loads(line.removesuffix(" ***").replace("'", '"')))
    assert {name for name in names if name.startswith(("ADE_", "PG", "AWS_"))} <= {"ADE_BUILD_ID"}
    assert names & set(service.env) <= {
        name for name in service.env if name.upper().startswith(("UV_", "SSL_", "HTTP", "NO_PROXY", "ALL_PROXY"))
    } | {"PATH", "HOME", "TMPDIR", "LANG", "REQUESTS_CA_BUNDLE", "NETRC"}
