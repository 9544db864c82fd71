"""Margins of LeNet on MNIST over the whole grid of DCT windows, not the diagonal alone, and over the epochs.

    python -m experiments run margin_map

Claim, beyond the paper: margins grow with the distance from the lowest frequencies in every direction, along one axis
alone as well, and the order of the windows is that of the first epochs. `map.png` shows the medians of the trained
network, `maps.png` those in training.
Corners are two frequencies apart, which leaves neighbouring windows three quarters in common.
"""

import dataclasses

from experiments.checks import Check
from experiments.configs import _checks, _mnist, _quick
from experiments.margin_map import (
    MarginMap,
    correlation_of_first_with_last,
    correlation_with_distance,
    growth_along_axes,
)

CONFIG = MarginMap(**{**dataclasses.asdict(_mnist.LENET), "window_step": 2, "measure_every": 2})
QUICK = dataclasses.replace(_quick.small(CONFIG), window_step=5, measure_every=1)
CHECKS = (
    _checks.MNIST_ACCURACY,
    Check(
        "rank correlation of the margins with the distance from the lowest frequencies",
        correlation_with_distance,
        "1 where margins depended on the distance alone. As where an order is claimed elsewhere, neighbours may change "
        "places.",
        at_least=0.8,
    ),
    Check(
        "least margin at the end of an axis over that in the lowest window",
        growth_along_axes,
        "Five times is claimed of the end of the diagonal. These windows are high in one direction only: twice is less "
        "than that, and more than networks differ among themselves.",
        at_least=2,
    ),
    Check(
        "rank correlation of the margins at the first measured epoch with those at the last",
        correlation_of_first_with_last,
        "What the data let a network use is there from the start; 0.8 as above.",
        at_least=0.8,
    ),
)
