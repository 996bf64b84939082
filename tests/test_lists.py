"""Lists, over rows that were made up, against an oracle: pages, filters, sorts, counts."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore.statements import statements
from projections import events
from service import commands
from service.api.uploads import CONFIGS
from service.errors import Malformed
from tests.conftest import Store
from tests.histories import build_created, rows, tell
from tests.shelves import CONFIG_NAMES, EPOCH, KINDS, MOMENTS, OWN, WORK, Row, Shelf, Shelves, made_up, shelves

pytestmark = pytest.mark.anyio


@pytest.fixture
def shelf_of(url: str) -> Iterator[Shelves]:
    """Makes the shelf of a kind."""
    with shelves(url) as found:
        yield found


# The oracle


@st.composite
def asked(draw: st.DrawFn, kind: str) -> dict[str, str]:
    """The parameters of a query, as text."""
    listing = KINDS[kind][0]
    sort = listing.query.model_json_schema()["properties"]["sort"]["enum"]
    optional = {
        "q": st.sampled_from(["mapped", "nothing", "%", "_", "Ü", 'A"L', "key", "penguin", "_1", kind[:3], "z"])
    }
    if kind in WORK:
        optional |= {
            "status": st.sampled_from(["failed", "queued,canceled", "queued"]),
            "stop_reason": st.sampled_from(["timeout", "failed,canceled"]),
            "config_id": st.just("config_1"),
            "created_after": MOMENTS.map(lambda at: str(EPOCH + at)),
            "created_before": MOMENTS.map(lambda at: str(EPOCH + at)),
        }
    some = [pair for size in range(3) for pair in itertools.combinations(optional, size)]  # more leave nothing over
    filters = draw(st.sampled_from(some))
    given = {name: draw(optional[name]) for name in filters}
    return given | {"sort": draw(st.sampled_from(sort)), "limit": str(draw(st.integers(1, 4)))}


def matches(row: Row, query: dict[str, str], workspace: str | None) -> bool:
    """Whether a list has this row, read from the words of the reference."""
    sort, q = query["sort"].removeprefix("-"), query.get("q", "").lower()
    texts = [row.get("name"), row.get("summary"), row.get("error_message"), CONFIG_NAMES.get(row.get("config_id", ""))]
    texts += row.get("options", {}).get("metadata", {}).values()
    return (
        {OWN: "one"}.get(workspace or "", workspace) in (None, row["workspace_id"])
        and all(row[name] in query[name].split(",") for name in ("status", "stop_reason", "config_id") if name in query)
        and float(query.get("created_after", 0)) <= EPOCH + row["created_at"] < float(query.get("created_before", 2e9))
        and (row["id"].lower().startswith(q) or any(q in text.lower() for text in texts if text))
        and not (sort in ("finished", "duration") and key(row, sort) is None)
    )


def key(row: Row, sort: str) -> Any:
    return row.get({"created": "created_at", "finished": "finished_at", "duration": "duration_ms"}.get(sort, sort))


def oracle(table: list[Row], query: dict[str, str], workspace: str | None) -> list[str]:
    """The ids that a list has, in its order. (The test's databases sort text by code points.)"""
    found = [row for row in table if matches(row, query, workspace)]
    sort = query["sort"].removeprefix("-")
    found.sort(key=lambda row: (key(row, sort), row["created_id"]), reverse=query["sort"].startswith("-"))
    return [row["id"] for row in found]


# Pages


Reader = Callable[[Shelf, dict[str, str], Any, str | None], tuple[list[str], Any, int | None]]


def by_mark(shelf: Shelf, query: dict[str, str], mark: Any, workspace: str | None) -> tuple[list[str], Any, int | None]:
    found = shelf.page(query, mark, workspace)
    return [row["id"] for row in found.rows], found.next_mark, found.total


def by_offset(
    shelf: Shelf, query: dict[str, str], mark: Any, workspace: str | None
) -> tuple[list[str], Any, int | None]:
    """The naive way: the mark is how many entries were seen."""
    seen, limit, every = mark or 0, int(query["limit"]), oracle(shelf.table, query, workspace)
    return every[seen : seen + limit], seen + limit if len(every) > seen + limit else None, len(every)


Scene = tuple[list[Row], list[list[Row]], dict[str, str], str | None]
"""What is there, what comes after each page, what is asked, and of which workspace."""


def scenes(kind: str) -> st.SearchStrategy[Scene]:
    some = st.lists(made_up(kind), min_size=5, max_size=12), st.lists(st.lists(made_up(kind), max_size=3), max_size=4)
    return st.tuples(*some, asked(kind), st.sampled_from([None, "one", OWN]))


def check_pages(shelf: Shelf, scene: Scene, read: Reader) -> None:
    """Follows a list to its end while rows are added: what was there at the beginning comes once each, in order, and
    nothing comes twice; the count of each page is that of its moment."""
    first, meanwhile, query, workspace = scene
    shelf.clear()
    shelf.add(*first)
    expected = oracle(shelf.table, query, workspace)
    seen: list[str] = []
    mark: Any = None
    added = iter(meanwhile)
    while True:
        page, mark, total = read(shelf, query, mark, workspace)
        assert total == len(oracle(shelf.table, query, workspace))
        assert mark is None or len(page) == int(query["limit"])
        seen += page
        assert len(seen) <= len(shelf.table), "it does not end"
        if mark is None:
            break
        shelf.add(*next(added, []))
    assert [name for name in seen if name in expected] == expected
    assert seen == [name for name in oracle(shelf.table, query, workspace) if name in seen]
    if not meanwhile:
        assert seen == expected


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_right_whatever_is_added_meanwhile(shelf_of: Shelves, kind: str) -> None:
    """In every sort, with every filter, with rows that are equal in what they are sorted by. Seen to fail with `>=` for
    `>` in a mark, without `created_id` in the order or in the mark, and with filters left out, one at a time."""
    shelf = shelf_of(kind)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(scenes(kind))
    def check(scene: Scene) -> None:
        check_pages(shelf, scene, by_mark)

    check()


@pytest.mark.parametrize(
    ("q", "found"),
    [
        *[("MAPPED", "1"), ("mapped 3", "1"), ("ü_", "2"), ("%", "2"), ("penguin", "134"), ("whale", "2")],
        *[
            ("run_003x", "3"),
            ("003", ""),
            ("1_0", ""),
            ('a"L', "3"),
            ("key", ""),
            ("7Ü", "3"),
            ("true", ""),
            ("one", ""),
        ],
    ],
)
def test_q_looks_where_it_says(shelf_of: Shelves, q: str, found: str) -> None:
    """In summary, message, config's name and the values of metadata; at the beginning of an id; and nowhere else. Seen
    to fail without summary, config or metadata, with metadata as JSON, and with `LIKE`."""
    shelf = shelf_of("runs")
    shelf.clear()
    run = {"workspace_id": "one", "created_at": 0, "status": "queued", "config_id": "config_1"}
    shelf.add(
        {**run, "summary": "Mapped 3 columns"},
        {**run, "error_message": "100% ü_", "config_id": "config_2"},
        {**run, "options": {"metadata": {"key": 'va"lue', "T": "7ü"}}},
        {**run, "options": {"dry_run": True}},
    )
    rows_found = shelf.page({"sort": "created", "q": q}, None, None).rows
    assert "".join(str(row["created_id"]) for row in rows_found) == found


def test_pages_by_offset_are_not(shelf_of: Shelves) -> None:
    """The check above can fail: on marks that are a number of entries."""
    shelf = shelf_of("documents")
    document = {"workspace_id": "one", "created_at": 0, "name": "a"}
    scene: Scene = ([document] * 3, [[{**document, "created_at": 1}]], {"sort": "-created", "limit": "2"}, None)
    check_pages(shelf, scene, by_mark)
    with pytest.raises(AssertionError):
        check_pages(shelf, scene, by_offset)


@pytest.mark.parametrize(
    "other", [{"sort": "created"}, {"status": "failed"}, {"q": "x"}, {"created_after": "1"}, {"workspace": "one"}, {}]
)
def test_a_mark_is_of_one_list(shelf_of: Shelves, other: dict[str, str]) -> None:
    """Another sort, another filter, another workspace, another resource: refused, not answered with something."""
    shelf, builds = shelf_of("runs"), shelf_of("builds")
    shelf.clear()
    for one in (shelf, builds):
        one.add(*[{"workspace_id": "one", "created_at": 0, "status": "queued", "config_id": "config_1"}] * 2)
    query = {"sort": "-created", "limit": "1"}
    mark = shelf.page(query, None, None).next_mark
    assert mark is not None
    assert shelf.page({**query, "limit": "2"}, mark, None, count=False).rows  # these are no part of what it is of
    workspace = other.get("workspace")
    elsewhere = {name: value for name, value in other.items() if name != "workspace"}
    with pytest.raises(Malformed) as refused:
        (shelf if other else builds).page({**query, **elsewhere}, mark, workspace)
    assert refused.value.facts["parameter"] == "page"


@pytest.mark.parametrize("key", [1e300, -1e12, 2.0**63, "x", ""])
def test_a_made_up_mark_is_refused(shelf_of: Shelves, key: Any) -> None:
    """Whoever knows how a mark is made gets no error of the database out of it."""
    shelf = shelf_of("runs")
    shelf.clear()
    shelf.add(*[{"workspace_id": "one", "created_at": 0, "status": "queued", "config_id": "config_1"}] * 2)
    for sort in ("created", "duration"):
        query = {"sort": sort, "limit": "1"}
        made = shelf.page({"sort": "created", "limit": "1"}, None, None).next_mark
        assert made is not None
        with pytest.raises(Malformed):
            shelf.page(query, made._replace(key=key), None)


# What it costs


def plan_of(url: str, statement: str, parameters: Row) -> Iterator[Row]:
    """The steps of a plan, as executed with these parameters."""
    with psycopg.connect(url) as connection:
        text = f"EXPLAIN (ANALYZE, FORMAT JSON) {statements()[statement]}"
        (found,) = connection.execute(text.encode(), parameters, prepare=False).fetchone() or ()
    steps = [found[0]["Plan"]]
    while steps:
        step = steps.pop()
        steps += step.get("Plans", [])
        yield step


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "configs"])  # of which a workspace has few
def test_a_deep_page_reads_as_little_as_the_first(shelf_of: Shelves, kind: str) -> None:
    """Each sort is the order of an index, and a mark a place in it. Seen to fail without the migration's indexes, and
    with a mark that is spelled out with `OR`."""
    shelf = shelf_of(kind)
    shelf.clear()
    work = {"status": "failed", "stop_reason": "timeout", "config_id": "config_1"} if kind in WORK else {}
    shelf.add(
        *(
            {"workspace_id": "one", "created_at": at, "name": f"n{at:04}"}
            if kind not in WORK
            else {
                "workspace_id": "one",
                "created_at": at,
                "finished_at": 9000 - at,
                "duration_ms": at * 7 % 3000,
                **work,
            }
            for at in range(3000)
        )
    )
    rows(shelf.url, f"ANALYZE {kind}")
    listing = shelf.listing
    fields = set(listing.query.model_fields) - {"page", "limit", "count", "sort"} | {"id", "workspace_id", "workspaces"}
    workspace = None if kind in WORK else "one"
    given = {**dict.fromkeys(fields), "workspace_id": workspace, "limit": 10, "count": False}
    for sort in listing.query.model_json_schema()["properties"]["sort"]["enum"]:
        mark = shelf.page({"sort": sort, "limit": "200"}, None, workspace).next_mark
        assert mark is not None
        for place in ({"key": None, "place": None}, {"key": str(mark.key), "place": mark.created_id}):
            steps = list(plan_of(shelf.url, listing.statement, {**given, **place, "sort": sort}))
            scans = [step for step in steps if step.get("Relation Name") == kind]
            looked = [scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0) for scan in scans]
            assert looked == [10], (sort, place, looked)


def test_searches_do_not_spoil_the_plan(shelf_of: Shelves) -> None:
    """A plan that is kept is, after some searches, one for any filters: it looks at every row, also for one run by its
    id. Seen to fail with `rows` in place of `planned`."""
    shelf = shelf_of("runs")
    shelf.clear()
    run = {"workspace_id": "one", "status": "queued", "config_id": "config_1"}
    shelf.add(*({**run, "created_at": at} for at in range(200)))
    rows(shelf.url, "ANALYZE runs")
    for _ in range(20):
        shelf.page({"sort": "created", "q": "nowhere"}, None, None)

    async def generic_plans() -> int:
        async with shelf.database._pool.connection() as connection:  # the only one
            question = "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%matching AS%'"
            kept = await (await connection.execute(question, prepare=False)).fetchall()
            return sum(row["generic_plans"] for row in kept)

    assert shelf.call(generic_plans) == 0


# What a config shows of its builds


async def test_a_config_shows_the_build_of_what_it_holds(store: Store) -> None:
    """Also where it went back to earlier content: new runs take that build. Seen to fail by the config's version."""
    for version, digest in enumerate(("d1", "d2", "d1"), 1):
        named = {"workspace_id": "antarctica", "name": "penguins", "version": version, "digest": digest}
        await tell(store, "config_1", events.ConfigRegistered(**named, requested_by="test").event())
        if version == 1:
            done = commands.build_completed("active", "completed").event()
            await tell(store, "build_1", build_created(), done)
        row = await CONFIGS.one(store.database, "config_1")
        assert (row["version"], row["active_build_id"]) == (version, "build_1" if digest == "d1" else None)
