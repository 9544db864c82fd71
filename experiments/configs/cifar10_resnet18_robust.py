"""Margins of ResNet-18 on CIFAR-10 after adversarial training, beside those after standard training.

    python -m experiments run cifar10_resnet18_robust

Claim: adversarial training enlarges margins in every window, most of all at high frequencies.
"""

from experiments.configs import _checks, _cifar10, _quick

CONFIG = _cifar10.robust(_cifar10.RESNET18)
QUICK = _quick.deep(CONFIG)
CHECKS = (*_checks.CIFAR10_ROBUSTNESS, _checks.LARGER, _checks.LARGER_AT_HIGH)
