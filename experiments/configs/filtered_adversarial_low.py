"""Margins of LeNet on MNIST after adversarial training with perturbations of low frequencies alone.

    python -m experiments run filtered_adversarial_low

Claim: it changes the boundary where no perturbation ever was, too: margins grow at high frequencies.
Pixels may leave [0, 1] in training: in a band, black ones would leave perturbations hardly a direction.
"""

import dataclasses

from experiments import claims
from experiments.checks import Check
from experiments.configs import _mnist, _quick

CONFIG = dataclasses.replace(_mnist.robust(_mnist.LENET), attack_band="low_pass:14")
QUICK = _quick.small(CONFIG)
CHECKS = (
    Check(
        "least factor of the margins in windows above the band",
        claims.least_ratio(claims.above("attack_band")),
        "Half as much again, in every window of the other band: the most by which single windows without features "
        "differ between networks.",
        at_least=1.5,
    ),
)
