"""Margins on T2, whose classes alternate along u2, for samples moved apart along u1 by a growing epsilon.

    python -m experiments run synthetic_nonlinear

Claim: the boundary crosses u2 within half a period while nothing else tells the classes apart. A small epsilon that
makes them linearly separable along u1 turns u2 into an invariance: the margin along it becomes many times larger.

Measured on two CPU cores in about two minutes: medians along u2 of 1.45, 1.79, 54.9, 131, 323 and 371 for the six
epsilons. With 0.05 the boundary still bends around the samples; with 0.1, a fiftieth of the period, it is straight.
"""

import dataclasses

from experiments.checks import Check
from experiments.nonlinear import EpsilonSweep, at_epsilon, growth_along_u2, half_period
from experiments.synthetic import accuracy, median_over

CONFIG = EpsilonSweep()
QUICK = dataclasses.replace(
    CONFIG, num_train=1000, num_observed=50, num_epochs=3, epsilons=(0.0, 1.0), resolution=0.1, reach=10.0
)

CHECKS = (
    Check(
        "test accuracy at the least epsilon",
        accuracy(at_epsilon(0)),
        "margins tell of the oscillation only if the network has learned it",
        at_least=0.95,
    ),
    Check(
        "median along u2 at the least epsilon over half a period, by DeepFool",
        median_over(half_period, at_epsilon(0), "u2"),
        "the other class is half a period away, and a network that is right changes its label on the way",
        at_most=1,
    ),
    Check(
        "median along u2 at the greatest epsilon over that at the least",
        growth_along_u2,
        "five times is far more than training changes the margin of a feature that stays in use",
        at_least=5,
    ),
    Check(
        "median along u1 at the greatest epsilon over that epsilon, scanned",
        median_over(lambda config: config["epsilons"][-1], at_epsilon(-1), "u1, scanned"),
        "an ideal boundary is epsilon away; 30% allow for one that is tilted by noise in 99 dimensions",
        at_least=0.7,
        at_most=1.3,
    ),
)
