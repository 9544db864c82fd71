"""Tables and numbers as text for the terminal."""

import math
from collections.abc import Iterable, Sequence

_MOST_ROWS = 40  # of a table, which fit on a screen; of more, those in the middle are left out


def table(columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Lines of text with columns under their names: the first column to the left, the others to the right.

    Args:
      columns: a name and the entries of each column, all of one length. If they have more than 40 entries, the first
        and the last 20 are shown.

    >>> print(table([("subspace", ["low", "high"]), ("median", ["0.52", "12.3"])]))
    subspace  median
    low         0.52
    high        12.3
    """
    cells = [[name, *_shortened(entries)] for name, entries in columns]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
        for first, *others in zip(*cells, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float) -> str:
    """A number with three digits that count.

    >>> [number(value) for value in (0.0523, 1, 12.345, 4321.7, 2e-7, float("inf"))]
    ['0.0523', '1.00', '12.3', '4322', '2.00e-07', 'inf']
    """
    return f"{value:.0f}" if 99.95 <= abs(value) < 1e6 else f"{value:#.3g}"


def numbers(values: Iterable[float]) -> list[str]:
    """The same for each of several."""
    return [number(value) for value in values]


def intervals(ends: Iterable[Sequence[float]]) -> list[str]:
    """Pairs of numbers, such as `0.51 to 0.54`."""
    return [f"{number(low)} to {number(high)}" for low, high in ends]


def shares(values: Iterable[float]) -> list[str]:
    """Shares of one, in percent, such as `52.3%`; `nan` for those that are no number."""
    return [str(value) if math.isnan(value) else f"{value:.1%}" for value in values]


def counted(count: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "image"), counted(10000, "image")
    ('1 image', '10,000 images')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _shortened(entries) -> list[str]:
    half = _MOST_ROWS // 2
    return [*entries] if len(entries) <= _MOST_ROWS else [*entries[:half], "...", *entries[-half:]]
