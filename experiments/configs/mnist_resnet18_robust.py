"""Margins of ResNet-18 on MNIST after adversarial training, beside those after standard training.

    python -m experiments run mnist_resnet18_robust

Claim: adversarial training enlarges margins in every window, most of all at high frequencies.
"""

from experiments.configs import _checks, _mnist, _quick

CONFIG = _mnist.robust(_mnist.RESNET18)
QUICK = _quick.deep(CONFIG)
CHECKS = (*_checks.MNIST_ROBUSTNESS, _checks.LARGER, _checks.LARGER_AT_HIGH)
