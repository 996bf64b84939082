"""Stats, over rows that were made up, against an oracle."""

import math
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore.clock import rfc3339
from service.api import stats
from service.api.stats import StatsQuery
from tests.shelves import CONFIG_NAMES, EPOCH, MOMENTS, OWN, WORK, Row, Shelves, made_up, shelves


@pytest.fixture
def shelf_of(url: str) -> Iterator[Shelves]:
    """Makes the shelf of a kind."""
    with shelves(url) as found:
        yield found


def of_work(table: list[Row], well: str) -> Row:
    """What stats say of some rows, without the queue."""
    took = sorted(row["duration_ms"] for row in table if row["status"] == well and row["duration_ms"] is not None)
    bad = Counter((row["stop_reason"], row["error_message"]) for row in table if row["status"] == "failed")
    newest = {(row["stop_reason"], row["error_message"]): row["id"] for row in table if row["status"] == "failed"}
    failures = [
        {"stop_reason": reason, "error_message": message, "count": count, "newest_id": newest[reason, message]}
        for (reason, message), count in bad.items()
    ]
    return {
        "total": len(table),
        "by_status": Counter(row["status"] for row in table),
        "by_stop_reason": Counter(row["stop_reason"] for row in table if row["stop_reason"]),
        "durations": durations(took),
        "failures": sorted(failures, key=lambda one: (one["count"], one["newest_id"]), reverse=True),
    }


def durations(took: list[int]) -> Row:
    """The smallest value that so many percent do not exceed."""
    places = {f"p{percent}_ms": math.ceil(len(took) * percent / 100) - 1 for percent in (50, 95)}
    return {name: sorted(took)[place] if took else None for name, place in places.items()}


def test_stats_are_those_of_the_rows(shelf_of: Shelves) -> None:
    """By time and workspace, of runs and builds; the queue is that of now, whatever the time. Seen to fail with
    conditions left out, one at a time."""
    shelf = {kind: shelf_of(kind) for kind in WORK}

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(made_up("runs"), min_size=3, max_size=12),
        st.lists(made_up("builds"), min_size=3, max_size=8),
        st.sampled_from(["one", None, OWN]),
        MOMENTS,
        MOMENTS,
    )
    def check(runs: list[Row], builds: list[Row], workspace: str | None, after: int, before: int) -> None:
        for kind, rows_of_kind in (("runs", runs), ("builds", builds)):
            shelf[kind].clear()
            shelf[kind].add(*rows_of_kind)
        query = StatsQuery.model_validate({"created_after": str(EPOCH + after), "created_before": str(EPOCH + before)})
        named, own_only = (None, ["one"]) if workspace == OWN else (workspace, None)
        found = shelf["runs"].call(lambda: stats.read(shelf["runs"].database, query, named, workspaces=own_only))
        assert found["workspace_id"] == named
        assert [found["created_after"], found["created_before"]] == [rfc3339(EPOCH + at) for at in (after, before)]
        for kind, well in (("runs", "succeeded"), ("builds", "active")):
            own = [row for row in shelf[kind].table if workspace is None or row["workspace_id"] == "one"]
            queued = [row for row in own if row["status"] == "queued"]
            meant = [row for row in own if after <= row["created_at"] < before]
            queue, configs = found[kind].pop("queue"), found[kind].pop("configs", [])
            assert queue["queued"] == len(queued)
            assert (queue["oldest_s"] is None) == (not queued)
            assert found[kind] == of_work(meant, well)
            if kind == "runs":
                assert queue["waiting_for"] == ({"worker": len(queued)} if queued else {})
                assert configs == of_configs(meant)

    check()


def of_configs(table: list[Row]) -> list[Row]:
    found = []
    for config_id, total in Counter(row["config_id"] for row in table).items():
        own = [row for row in table if row["config_id"] == config_id]
        took = sorted(
            row["duration_ms"] for row in own if row["status"] == "succeeded" and row["duration_ms"] is not None
        )
        failed = sum(row["status"] == "failed" for row in own)
        name = CONFIG_NAMES[config_id]
        one = {"config_id": config_id, "name": name, "total": total, "failed": failed, "durations": durations(took)}
        found.append(one)
    return sorted(found, key=lambda one: (-one["total"], one["config_id"]))


def test_stats_are_of_the_last_day_and_tell_the_age_of_the_queue(shelf_of: Shelves) -> None:
    """Where no time is given; and where only its end is, of the day before it."""
    shelf, now = shelf_of("runs"), time.time() - EPOCH
    shelf.clear()
    queued = {"workspace_id": "one", "status": "queued", "waiting_for": "worker", "config_id": "config_1"}
    shelf.add(*({**queued, "created_at": now - hours * 3600} for hours in (1, 23, 25, 49)))

    def told(**query: str) -> Row:
        return dict(shelf.call(lambda: stats.read(shelf.database, StatsQuery.model_validate(query)))["runs"])

    assert [told()["total"], told(created_before=str(EPOCH + now - 24 * 3600))["total"]] == [2, 1]
    assert abs(told()["queue"]["oldest_s"] - 49 * 3600) < 60
