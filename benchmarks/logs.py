"""Logs as people read them: any place of a huge one, and a search in it, beside grep on its file."""

import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import anyio
import httpx
import orjson

from benchmarks.bench import Bench, check
from benchmarks.serving import running
from benchmarks.table import Target, at_least, at_most, number, p50_p99, percentile
from benchmarks.viewers import NDJSON
from benchmarks.writing import create_runs, fill

OTHERS = 4
"""Runs as long as that one, before and after it in the log."""
SMALL = 10_000
"""Lines of the run that a huge one is compared with."""
WINDOW = 100
TEXTS = {"a text in one of 1,000 lines": "invoice 000000123", "a text in none": "zebra"}
FLAT = 2.0


def logs(bench: Bench) -> None:
    """Windows at random places of a run, and a search through all of it."""
    count, times = bench.of(10_000_000, 100_000), bench.of(300, 30)
    with bench.database() as url, bench.room() as data:
        small, *large = anyio.run(create_runs, url, 2 + OTHERS)
        huge = large[len(large) // 2]
        anyio.run(fill, url, small, SMALL)
        for run in large:
            anyio.run(fill, url, run, count)
        with running("api", url, data) as api:
            before = _windows(f"{api.url}/runs/{small}/logs", times)
            for what, took_s in _windows(f"{api.url}/runs/{huge}/logs", times).items():
                ratio = percentile(took_s, 50) / percentile(before[what], 50)
                bench.table.add(
                    f"logs of {count:,} lines among {len(large) * count:,}, {what}, {WINDOW} entries",
                    p50_p99(took_s),
                    at_most(percentile(took_s, 99) * 1000, 50, "ms p99"),
                    Target(f"flat (≤ {FLAT:.0f} × that of {SMALL:,} lines)", ratio <= FLAT),
                    beside=f"p50 {ratio:.2f} × that of {SMALL:,} lines",
                )
            _search(bench, f"{api.url}/runs/{huge}", data, count)


def _windows(url: str, times: int) -> dict[str, list[float]]:
    """Seconds of each way to open a window, at places that are random but the same in every round."""
    found: dict[str, list[float]] = {}
    places = random.Random(5)
    with httpx.Client(trust_env=False) as http:
        first = http.get(url, params={"limit": 1}).json()
        last = http.get(url, params={"tail": 1}).json()["entries"][0]
        opened, closed = first["entries"][0]["created"], last["created"] + 1
        for _ in range(times):
            at = places.random()
            place = round(at * first["last_seq"])
            for what, params in {
                "first page": {"limit": WINDOW},
                "tail": {"tail": WINDOW},
                "around an id": {"around": first["first_id"] + place, "limit": WINDOW},
                "around a place of the scroll bar": {"around_seq": max(1, place), "limit": WINDOW},
                "around a time": {"around_time": opened + at * (closed - opened), "limit": WINDOW},
            }.items():
                started = time.perf_counter()
                answer = http.get(url, params=params)
                found.setdefault(what, []).append(time.perf_counter() - started)
                check(0 < len(answer.json()["entries"]) <= WINDOW, f"{what}: {answer.text[:200]}")
    return found


def _search(bench: Bench, url: str, data: Path, count: int) -> None:
    file = data / "events.ndjson"
    with urlopen(f"{url}/logfile") as answer, file.open("wb") as copy:
        shutil.copyfileobj(answer, copy, 1 << 20)
    for what, text in TEXTS.items():
        started = time.perf_counter()
        counted = subprocess.run(["grep", "--count", "--fixed-strings", text, file], capture_output=True, check=False)
        grep = count / (time.perf_counter() - started)
        started = time.perf_counter()
        summary = _found(f"{url}/logs/search?{urlencode({'q': text})}")
        rate = count / (time.perf_counter() - started)
        check(summary["matches"] == int(counted.stdout), f"{summary} matches, {counted.stdout!r} by grep")
        bench.table.add(
            f"search through {count:,} lines for {what}",
            f"{number(rate)} lines/s",
            at_least(rate, 1_000_000, "lines/s"),
            beside=f"{rate / grep:.2f} × grep on events.ndjson ({number(grep)} lines/s); the same count",
        )


def _found(url: str) -> Any:
    """The summary of a search, behind all that it found."""
    with urlopen(Request(url, headers={"Accept": NDJSON})) as answer:
        *_, summary = answer
    return orjson.loads(summary)
