"""The table that a round prints: what, how fast, and beside what."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured thing. ``value`` per second, or milliseconds where ``unit`` says so; ``limit`` names its peer."""

    what: str
    value: float
    unit: str
    limit: str = ""
    ratio: float | None = None


@dataclass
class Table:
    """Figures in the order in which they were measured."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str, *, limit: str = "", of: float | None = None) -> float:
        """Adds a figure, with its ratio to a limit that was measured in the same round. Returns the value."""
        figure = Figure(what, value, unit, limit, value / of if of else None)
        self.figures.append(figure)
        print(self._row(figure), flush=True)
        return value

    def markdown(self) -> str:
        """The figures as a table."""
        rows = [
            f"| {f.what} | {_number(f.value)} {f.unit} | {f'{f.ratio:.2f} × {f.limit}' if f.ratio else f.limit} |"
            for f in self.figures
        ]
        return "\n".join(["| what | figure | beside |", "|---|---|---|", *rows])

    def _row(self, figure: Figure) -> str:
        beside = f"{figure.ratio:.2f} x {figure.limit}" if figure.ratio else figure.limit
        return f"{figure.what:<58} {_number(figure.value):>10} {figure.unit:<9} {beside}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
