"""Margins on T1, where one direction of a hundred tells two classes apart: an MLP and logistic regression.

    python -m experiments run synthetic_linear

Claim: a network's boundary is near along the discriminative direction u1, about epsilon away, and many times farther in
all directions orthogonal to it taken together.

Measured on two CPU cores in less than a minute: medians of 1.36 along u1 and 9.5 in its complement for the MLP, 1.02
and 67.9 for logistic regression. DeepFool's margins are upper bounds, and those of the MLP along u1 miss the 30%: from
1.26 to 1.80 in trials with other learning rates and epochs. The threshold stays; the scan of the line, which finds
1.00, was added when that was known.
"""

import dataclasses
import functools

from experiments.checks import Check
from experiments.linear import LinearMargins, complement_over_u1, network
from experiments.synthetic import accuracy, median_over

CONFIG = LinearMargins(num_epochs=10)
QUICK = dataclasses.replace(CONFIG, num_train=1000, num_observed=50, num_epochs=5, random_dimensions=(1, 30))

_FIVE = "a margin five times as large is no matter of noise, and still far below infinity, that of an ideal boundary"
_NEAR = "an ideal boundary is epsilon away; 30% allow for one that is tilted by noise in 99 dimensions"
_NEAR_EPSILON = {"at_least": 0.7, "at_most": 1.3}
_median_over_epsilon = functools.partial(median_over, lambda config: config["epsilon"])

CHECKS = (
    Check("MLP: median in the complement of u1 over that along u1", complement_over_u1("mlp"), _FIVE, at_least=5),
    Check(
        "logistic: median in the complement of u1 over that along u1", complement_over_u1("logistic"), _FIVE, at_least=5
    ),
    Check(
        "MLP: median along u1 over epsilon, by DeepFool",
        _median_over_epsilon(network("mlp"), "u1"),
        _NEAR,
        **_NEAR_EPSILON,
    ),
    Check(
        "MLP: median along u1 over epsilon, scanned",
        _median_over_epsilon(network("mlp"), "u1, scanned"),
        _NEAR,
        **_NEAR_EPSILON,
    ),
    Check(
        "logistic: median along u1 over epsilon, by DeepFool",
        _median_over_epsilon(network("logistic"), "u1"),
        _NEAR,
        **_NEAR_EPSILON,
    ),
    Check("MLP: test accuracy", accuracy(network("mlp")), "the classes are 2 epsilon apart along u1", at_least=0.95),
)
