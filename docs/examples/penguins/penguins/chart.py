"""The picture: flipper length against body mass, one mark per bird, as an SVG file written by hand."""

from collections.abc import Callable, Sequence
from math import floor, log10

from penguins.tidy import Bird

LEFT, RIGHT, TOP, BOTTOM = 84, 692, 76, 412  # the plot, in a picture of 720 x 480
INK, PENCIL, LINE, PAPER = "#1d2430", "#4a5260", "#e4e1d8", "#fbfaf7"

# Species -> colour and mark, drawn around 0,0. The shapes are for those to whom the colours look alike.
MARKS = {
    "Adelie": ("#e07b00", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z"),
    "Chinstrap": ("#a034c8", "M0-4.8L4.6 3.4H-4.6Z"),
    "Gentoo": ("#057f80", "M-3.5-3.5H3.5V3.5H-3.5Z"),
}


def draw(birds: Sequence[Bird]) -> str:
    """The chart of all birds with both values, as SVG text; empty axes when there are none.

    Colours are attributes and the card brings its own background, so it looks the same on a light page, on a dark one,
    and where a content policy forbids styles.
    """
    points = [
        (str(bird["species"]), x, y)
        for bird in birds
        if isinstance(x := bird["flipper_length_mm"], int | float) and isinstance(y := bird["body_mass_g"], int | float)
    ]
    x_ticks = ticks([x for _, x, _ in points])
    y_ticks = ticks([y for _, _, y in points])
    across, up = scale(x_ticks, LEFT, RIGHT), scale(y_ticks, BOTTOM, TOP)
    marks = [f'<path id="{species}" d="{path}" fill="{colour}"/>' for species, (colour, path) in MARKS.items()]
    grid = [f'<path d="M{across(x):.1f} {TOP}V{BOTTOM}"/>' for x in x_ticks]
    grid += [f'<path d="M{LEFT} {up(y):.1f}H{RIGHT}"/>' for y in y_ticks]
    x_labels = [f'<text x="{across(x):.1f}" y="{BOTTOM + 20}">{x:,g}</text>' for x in x_ticks]
    y_labels = [f'<text x="{LEFT - 10}" y="{up(y) + 4.5:.1f}">{y:,g}</text>' for y in y_ticks]
    dots = [f'<use href="#{species}" x="{across(x):.1f}" y="{up(y):.1f}"/>' for species, x, y in points]
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 480" width="720" height="480">
<title>Flipper length and body mass of penguins, by species</title>
<defs>{"".join(marks)}</defs>
<rect width="720" height="480" rx="10" fill="{PAPER}"/>
<g font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13" fill="{PENCIL}">
<text x="{LEFT}" y="34" font-size="19" font-weight="600" fill="{INK}">Flipper length and body mass</text>
<text x="{LEFT}" y="55">{len(points)} penguins, Palmer Station</text>
<g fill="{INK}">{"".join(legend())}</g>
<g stroke="{LINE}">{"".join(grid)}</g>
<g text-anchor="middle">{"".join(x_labels)}</g>
<g text-anchor="end">{"".join(y_labels)}</g>
<text x="388" y="458" text-anchor="middle">Flipper length (mm)</text>
<text transform="translate(24 244) rotate(-90)" text-anchor="middle">Body mass (g)</text>
</g>
<g fill-opacity=".72" stroke="{PAPER}" stroke-width=".6">
{"".join(dots)}
</g>
</svg>
"""


def legend() -> list[str]:
    """Marks and names of the species in one row that ends at the right of the plot."""
    lines, x = [], RIGHT
    for species in reversed(MARKS):
        x -= 8 * len(species)  # about the width of the name
        lines.append(f'<use href="#{species}" x="{x - 12}" y="50.5"/><text x="{x}" y="55">{species}</text>')
        x -= 36
    return lines


def ticks(values: Sequence[float]) -> list[float]:
    """About six round numbers, from below the least value to above the greatest; 0 to 1 when there is no value."""
    low, high = min(values, default=0), max(values, default=1)
    rough = (high - low or 1) / 6
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * n for n in range(floor(low / step), floor(high / step) + 2)]


def scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """The straight line from a value to its place in the picture: first tick to `start`, last to `end`."""
    return lambda value: start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)
