"""Colours, dashes and markers of curves, shared by pictures and pages. No two curves differ by colour alone."""

from typing import NamedTuple

import numpy as np


class Look(NamedTuple):
    """The look of one curve.

    Attributes:
      color: on white.
      dark_color: on a dark background.
      marker: in Matplotlib.
      path: the marker as a path of SVG, within -1 and 1.
      dashes: lengths of strokes and gaps; empty for a line without gaps.
    """

    color: str
    dark_color: str
    marker: str
    path: str
    dashes: tuple[float, ...]


_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1, 1), (5, 1.5, 1, 1.5), (8, 1.5, 1, 1.5, 1, 1.5))

#: Seven colours of Okabe and Ito, without their yellow, and three of Tol: colour-blind people can tell them apart, too.
LOOKS = tuple(
    Look(*look, _DASHES[number % len(_DASHES)])
    for number, look in enumerate(
        (
            ("#0072b2", "#5db3ec", "o", "M-.9,0A.9,.9 0 1,1 .9,0A.9,.9 0 1,1 -.9,0Z"),
            ("#d55e00", "#ff9248", "s", "M-.8,-.8H.8V.8H-.8Z"),
            ("#009e73", "#35cfa2", "D", "M0,-1L1,0L0,1L-1,0Z"),
            ("#cc79a7", "#eba9cd", "v", "M-1,-.8H1L0,1Z"),
            ("#000000", "#f4f4f4", "P", "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z"),
            (
                *("#e69f00", "#f7c04f", "X"),
                "M-1,-.55L-.55,-1L0,-.45L.55,-1L1,-.55L.45,0L1,.55L.55,1L0,.45L-.55,1L-1,.55L-.45,0Z",
            ),
            ("#56b4e9", "#a9defc", "<", "M.8,-1V1L-1,0Z"),
            ("#882255", "#e481ab", ">", "M-.8,-1V1L1,0Z"),
            (
                *("#999933", "#cdcd6a", "*"),
                "M0,-1L.24,-.33L.95,-.31L.39,.13L.59,.81L0,.42L-.59,.81L-.39,.13L-.95,-.31L-.24,-.33Z",
            ),
            ("#7f7f7f", "#b4b4b4", "h", "M0,-1L.87,-.5V.5L0,1L-.87,.5V-.5Z"),
        )
    )
)

CENSORED_COLOR, DARK_CENSORED_COLOR = "#d55e00", "#ff9248"

#: The words for what is drawn.
MEDIAN, BAND, CENSORED = "median", "5% to 95%", "without a margin"
MARGIN = "margin (L2, pixels in [0, 1])"


def check_number(number: int, things: str = "curves") -> None:
    """Raises ValueError for more curves than there are looks."""
    if number > len(LOOKS):
        raise ValueError(
            f"{number} {things} can't be told apart, at most {len(LOOKS)} can: draw some in another figure"
        )


def log_ticks(low: float, high: float) -> np.ndarray:
    """Places for ticks between two ends of a logarithmic axis: at least four, at most about ten, of few digits."""
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    powers = powers[:: 1 + len(powers) // 10]
    for digits in ([1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]):
        ticks = np.outer(10.0**powers, digits).ravel()
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= 4:
            return ticks
    step = 10 ** np.floor(np.log10((high - low) / 2))
    step *= next(each for each in (1, 2, 5, 10) if (high - low) / (each * step) <= 6)
    return step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)
