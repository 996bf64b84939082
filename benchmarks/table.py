"""The table that a round prints: what, how fast, beside what, and what it was meant to reach."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """What a figure is meant to reach, and whether it does."""

    text: str
    met: bool

    def __str__(self) -> str:
        return f"✓ {self.text}" if self.met else f"**✗ {self.text}**"


def at_least(value: float, least: float, unit: str) -> Target:
    """The figure, or its ratio to a peer, is at least this."""
    return Target(f"≥ {number(least)} {unit}", value >= least)


def at_most(value: float, most: float, unit: str) -> Target:
    """The figure, or its ratio to another, is at most this."""
    return Target(f"≤ {number(most)} {unit}", value <= most)


@dataclass(frozen=True)
class Row:
    """One measured thing, in words: ``beside`` is its ratio to a peer, or what else was seen in the same moment."""

    what: str
    figure: str
    beside: str
    targets: Sequence[Target]

    def __str__(self) -> str:
        return f"| {self.what} | {self.figure} | {self.beside} | {'; '.join(map(str, self.targets))} |"


@dataclass
class Table:
    """Rows in the order in which they were measured, printed as they come."""

    rows: list[Row] = field(default_factory=list)
    failures: int = 0

    HEAD = "| what | figure | beside | target |\n|---|---|---|---|"

    def add(self, what: str, figure: str, *targets: Target, beside: str = "") -> None:
        """One more row."""
        self.rows.append(Row(what, figure, beside, targets))
        print(self.rows[-1], flush=True)

    def missing(self, what: str, why: str) -> None:
        """A peer that cannot be measured here."""
        self.add(what, "**NOT MEASURED**", beside=why)

    def failed(self, what: str, error: Exception) -> None:
        """A row that broke: something was lost, came twice, or did not run."""
        self.failures += 1
        self.add(what, "**FAILED**", beside=f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/"))

    def markdown(self) -> str:
        """All rows, and how many targets were missed."""
        targets = [target for row in self.rows for target in row.targets]
        missed = sum(not target.met for target in targets)
        rows = "\n".join(map(str, self.rows))
        counts = (
            f"{len(targets)} targets: ✓ {len(targets) - missed} met, ✗ {missed} missed; {self.failures} rows failed."
        )
        return f"{self.HEAD}\n{rows}\n\n{counts}\n"


def number(value: float) -> str:
    """Three digits, or all those before the point."""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ms(seconds: float) -> str:
    """A duration."""
    return f"{number(seconds * 1000)} ms"


def mb(size: float) -> str:
    """A size in bytes."""
    return f"{number(size / 1e6)} MB"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed; the 99th of fewer than 100 is the largest."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def p50_p99(seconds: Sequence[float]) -> str:
    """The two percentiles of some durations."""
    return f"p50 {ms(percentile(seconds, 50))}, p99 {ms(percentile(seconds, 99))}"
