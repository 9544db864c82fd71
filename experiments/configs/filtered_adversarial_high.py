"""Margins of LeNet on MNIST after adversarial training with perturbations of high frequencies alone.

    python -m experiments run filtered_adversarial_high

Claim: it changes little. A standard network's margins in that band are many times the perturbations' size already, so
that they cross no boundary, and the margins at low frequencies stay.
Pixels may leave [0, 1] in training: in a band, black ones would leave perturbations hardly a direction.
"""

import dataclasses

from experiments import claims
from experiments.checks import Check
from experiments.configs import _mnist, _quick

CONFIG = dataclasses.replace(_mnist.robust(_mnist.LENET), attack_band="high_pass:14")
QUICK = _quick.small(CONFIG)
CHECKS = (
    Check(
        "greatest change of the margins in windows below the band",
        claims.greatest_change(claims.below("attack_band")),
        "Networks differ among themselves by about a tenth.",
        at_most=0.3,
    ),
)
