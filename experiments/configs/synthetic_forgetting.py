"""A network that has learned T2 without epsilon goes on training with it: margins and boundary over the epochs.

    python -m experiments run synthetic_forgetting

Claim: the samples move along u1 alone, yet the boundary along u2, the direction that the network relied on, vanishes,
and it does so within a few epochs.

Measured on two CPU cores in 145 s: the median along u2 is 1.45 after 30 epochs, when the samples move, 2.01 ten later,
18.9 after 16 and censored after 18; scanned, it goes from 2.4 to 12.3 between the 14th and the 20th of these epochs.
"""

import dataclasses

from experiments.checks import Check
from experiments.forgetting import Forgetting, at_switch, greatest_growth
from experiments.nonlinear import half_period
from experiments.synthetic import accuracy, median_over

CONFIG = Forgetting()
QUICK = dataclasses.replace(CONFIG, num_train=1000, num_observed=50, num_epochs=4, resolution=0.1, reach=10.0)

_THRICE = "three times is far more than training changes the margin of a feature that stays in use"

CHECKS = (
    Check(
        "test accuracy at the end of the first training",
        accuracy(at_switch),
        "a network forgets only what it has learned",
        at_least=0.95,
    ),
    Check(
        "median along u2 at the end of the first training over half a period, by DeepFool",
        median_over(half_period, at_switch, "u2"),
        "the other class is half a period away, and a network that is right changes its label on the way",
        at_most=1,
    ),
    Check(
        "greatest growth of the median along u2 within four epochs of the second training, by DeepFool",
        greatest_growth("u2", 4),
        _THRICE,
        at_least=3,
    ),
    # Added when DeepFool had found no margin for half of the samples, so that its ratio was infinite.
    Check("the same, scanned", greatest_growth("u2, scanned", 4), _THRICE, at_least=3),
)
