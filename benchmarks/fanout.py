"""One feed, many viewers: how soon each gets each line, and whether all get all."""

import anyio

from benchmarks.bench import Bench, check
from benchmarks.serving import running
from benchmarks.table import Target, at_most, number, p50_p99, percentile
from benchmarks.viewers import SSE, watching
from benchmarks.writing import create_runs, pace

KEPT_UP = 0.98
"""The share of what was asked for that counts as all of it: the last lines arrive a moment after the last second."""


def to_one_viewer(bench: Bench) -> None:
    """Append to SSE viewer, 1,000 events a second."""
    seconds = bench.of(10.0, 1.0)
    with bench.database() as url, bench.room() as data, running("api", url, data) as api:
        runs = anyio.run(create_runs, url, 1)
        with watching(api.port, runs, 1, int(1_000 * seconds), SSE) as viewers:
            anyio.run(pace, url, runs, 1_000, int(1_000 * seconds))
            seen = viewers.seen()
        check(not seen.wrong, seen.wrong)
    targets = (
        at_most(percentile(seen.late_s, 50) * 1000, 5, "ms p50"),
        at_most(percentile(seen.late_s, 99) * 1000, 20, "ms p99"),
    )
    bench.table.add("append → SSE viewer, 1,000 events/s", p50_p99(seen.late_s), *targets)


def thousand(bench: Bench) -> None:
    """1,000 viewers × 1,000 events/s."""
    _fan_out(bench, bench.of(1_000, 200), 1_000, p99_ms=35)


def ten_thousand(bench: Bench) -> None:
    """1,000 viewers × 10,000 events/s."""
    _fan_out(bench, bench.of(1_000, 100), 10_000, p99_ms=150, share=0.8)


def four_thousand(bench: Bench) -> None:
    """4,000 viewers × 2 events/s, and what each costs."""
    _fan_out(bench, bench.of(4_000, 500), 2, p99_ms=100, kb_each=15)


def _fan_out(
    bench: Bench, viewers: int, per_second: int, *, p99_ms: float, share: float = KEPT_UP, kb_each: float | None = None
) -> None:
    """``share`` is the least part of the deliveries per second that were asked for."""
    seconds = bench.of(10.0, 1.0)
    count = int(per_second * seconds)
    with bench.database() as url, bench.room() as data, running("api", url, data) as api:
        runs = anyio.run(create_runs, url, 1)
        before, cpu_s = api.rss, api.cpu_s
        with watching(api.port, runs, viewers, count) as watchers:
            each, cpu_s = (api.rss - before) / viewers, api.cpu_s
            anyio.run(pace, url, runs, per_second, count)
            seen = watchers.seen()
            cpu_s = api.cpu_s - cpu_s
        check(not seen.wrong, seen.wrong)
    rate, asked = viewers * count / seen.took_s, viewers * per_second
    kept_up = Target(f"{'' if share == KEPT_UP else '≥ '}{number(asked * share)} deliveries/s", rate >= asked * share)
    targets = [kept_up, at_most(percentile(seen.late_s, 99) * 1000, p99_ms, "ms p99")]
    if kb_each is not None:
        targets.append(at_most(each / 1000, kb_each, "kB a viewer"))
    what = f"fan-out, {viewers:,} viewers × {per_second:,} events/s on one feed"
    cost = f"{each / 1000:.1f} kB a viewer, API at {cpu_s / seen.took_s:.0%} of a core"
    beside = f"{p50_p99(seen.late_s)}, {cost}; each line once"
    bench.table.add(what, f"{number(rate)} deliveries/s", *targets, beside=beside)
