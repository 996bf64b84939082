"""What viewers feel of what others do: a flood in another run, a viewer that hardly reads."""

import re
import socket
import threading
import time

import anyio

from benchmarks.bench import Bench, check
from benchmarks.serving import Service, running
from benchmarks.table import Target, at_most, number, p50_p99, percentile
from benchmarks.viewers import Seen, watching
from benchmarks.writing import Beside, create_runs, flood, pace

TWICE = 2.0
FLOOD = 200_000
SLOW_BYTES_PER_S = 1_000
SLOW_PATIENCE_S = 60.0
_EVENT = re.compile(rb'^\{"id":(\d+),[^\n]*?"seq":(\d+),[^\n]*\n', re.MULTILINE)


def beside_a_flood(bench: Bench) -> None:
    """Viewers of a run each, without and with a flood in another run; and what they cost when all is quiet."""
    count, seconds = bench.of(1_000, 100), bench.of(10.0, 1.0)
    with bench.database() as url, bench.room() as data, running("api", url, data) as api:
        runs = anyio.run(create_runs, url, 2 * count + 1)
        alone, idle = _watch_ticks(url, api, runs[:count], seconds)
        with Beside(flood, url, runs[-1], FLOOD, seconds) as flooding:
            beside, _ = _watch_ticks(url, api, runs[count:-1], seconds, quiet_s=0)
            written = flooding.result()
    bench.table.add(f"{count:,} viewers on {count:,} runs, a line a second each", p50_p99(alone.late_s))
    near_0 = Target("near 0 (≤ 5 %)", idle <= 0.05)
    bench.table.add("the same while nothing is written: CPU of the API", f"{idle:.1%} of a core", near_0)
    ratio = percentile(beside.late_s, 99) / percentile(alone.late_s, 99)
    target = at_most(ratio, TWICE, "× the p99 without")
    what = f"the same beside a flood of {number(written / seconds)} lines/s in another run ({FLOOD:,} asked for)"
    bench.table.add(what, p50_p99(beside.late_s), target, beside=f"{ratio:.1f} × the p99 without")


def _watch_ticks(url: str, api: Service, runs: list[str], seconds: float, quiet_s: float = 1.0) -> tuple[Seen, float]:
    """What viewers of a run each see of a line a second; and the share of a core that they cost before the first."""
    each, idle = int(seconds), 0.0
    with watching(api.port, runs, len(runs), each) as viewers:
        if quiet_s:
            time.sleep(0.5)  # the last look of the hub at what was new
            cpu_s, before = api.cpu_s, time.monotonic()
            time.sleep(quiet_s)
            idle = (api.cpu_s - cpu_s) / (time.monotonic() - before)
        anyio.run(pace, url, runs, len(runs), len(runs) * each)
        seen = viewers.seen()
    check(not seen.wrong, seen.wrong)
    return seen, idle


def slow_viewer(bench: Bench) -> None:
    """One at 1 kB/s among fast ones, who are not to feel it, while it loses nothing."""
    count, per_second, seconds = bench.of(999, 100), 1_000, bench.of(15.0, 1.0)
    lines = int(per_second * seconds)
    with bench.database() as url, bench.room() as data, running("api", url, data) as api:
        runs = anyio.run(create_runs, url, 2)
        alone, rate_alone = _watch_one(url, api, runs[0], count, per_second, lines)
        slow = _SlowViewer(api.port, runs[1], lines)
        beside, rate_beside = _watch_one(url, api, runs[1], count, per_second, lines, slow)
        slow.hurry.set()
        slow.join(SLOW_PATIENCE_S)
        check(slow.seqs == list(range(1, lines + 2)), f"the slow viewer got {len(slow.seqs)} of {lines + 1} lines")
    ratio = percentile(beside.late_s, 99) / percentile(alone.late_s, 99)
    unchanged = Target(f"unchanged (p99 ≤ {TWICE:.0f} × without)", ratio <= TWICE)
    whole = Target("the slow one gets everything", met=True)
    writer = f"writer at {number(rate_beside)} events/s, {number(rate_alone)} without"
    its_own = f"the slow one had {slow.had_then:,} lines then, and all {lines:,} in the end"
    beside_it = f"p99 {ratio:.2f} × without it; {writer}; {its_own}, in {slow.connections} connection(s)"
    what = f"{count} viewers × {per_second:,} events/s beside one at 1 kB/s"
    bench.table.add(what, p50_p99(beside.late_s), unchanged, whole, beside=beside_it)


def _watch_one(
    url: str, api: Service, run: str, count: int, per_second: int, lines: int, slow: "_SlowViewer | None" = None
) -> tuple[Seen, float]:
    """What the fast ones see, and events per second of the writer."""
    with watching(api.port, [run], count, lines) as viewers:
        if slow is not None:
            slow.start()
        rate = anyio.run(pace, url, [run], per_second, lines)
        seen = viewers.seen()
    check(not seen.wrong, seen.wrong)
    return seen, rate


class _SlowViewer(threading.Thread):
    """Reads 1 kB a second until it is told to hurry; comes back with its cursor when it is cut off."""

    def __init__(self, port: int, run: str, lines: int) -> None:
        super().__init__(daemon=True)
        self.hurry = threading.Event()
        self.seqs: list[int] = []
        self.had_then = self.connections = 0
        self._port, self._run, self._lines, self._after = port, run, lines, 0

    def run(self) -> None:
        while len(self.seqs) <= self._lines:
            self.connections += 1
            self._read()

    def _read(self) -> None:
        with socket.socket() as viewer:
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            viewer.connect(("127.0.0.1", self._port))
            path = f"/api/v1/runs/{self._run}/events?stream=true&after_id={self._after}"
            viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/x-ndjson\r\n\r\n".encode())
            rest = b""
            while len(self.seqs) <= self._lines and (data := viewer.recv(65536 if self.hurry.is_set() else 500)):
                rest += data
                for match in _EVENT.finditer(rest):
                    self._after = int(match[1])
                    self.seqs.append(int(match[2]))
                rest = rest[rest.rfind(b"\n") + 1 :]
                if not self.hurry.wait(500 / SLOW_BYTES_PER_S):
                    self.had_then = len(self.seqs)
