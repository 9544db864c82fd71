"""Claims on the results of a run, and the intervals of the numbers that decide them.

A claim is a number with a threshold, and a reason for the threshold. It was set before the number was known; if not,
the catalogue says so. The number has a bootstrap interval; the claim holds if the number itself meets the threshold.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

from hmt_jax.estimates import Estimate

Statistic = Callable[[pathlib.Path], Estimate]  # a number of a run, from its folder


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim on the results of a run, in words, which holds if a number of the run meets a threshold."""

    text: str
    statistic: Statistic
    reason: str  # for the threshold
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self):
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the claim {self.text!r} has no threshold: give at_least, at_most or both")

    def test(self, path: pathlib.Path) -> dict[str, Any]:
        """The verdict on the run in a folder, for JSON: numbers that are not finite are written as text.

        A run is not lost if settings left out the results that the statistic needs: the reason is written as
        "undecided", and the claim neither holds nor fails.
        """
        undecided = {}
        try:
            estimate = self.statistic(path)
            if math.isnan(estimate.value):
                undecided = {"undecided": "it has no value, as where medians that it compares are censored"}
        except (ValueError, LookupError, OSError) as error:
            estimate, undecided = Estimate(math.nan, math.nan, math.nan), {"undecided": str(error)}
        least, most = self.at_least, self.at_most
        is_met = (least is None or estimate.value >= least) and (most is None or estimate.value <= most)
        return {
            "claim": self.text,
            "reason": self.reason,
            "at_least": least,
            "at_most": most,
            **{field: for_json(number) for field, number in estimate._asdict().items()},
            "holds": bool(is_met),  # never for NaN
            **undecided,
        }


def for_json(number: float) -> float | str:
    """The number, or "inf" or "nan" in words, because JSON has no such numbers."""
    return float(number) if math.isfinite(number) else str(float(number))
