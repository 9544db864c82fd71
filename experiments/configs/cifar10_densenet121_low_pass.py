"""Margins of DenseNet-121 on CIFAR-10 with the frequencies [0, 16) x [0, 16) only, beside those on plain data.

    python -m experiments run cifar10_densenet121_low_pass

Claim: the margins grow in the band that was removed, and stay below it.
"""

from experiments.configs import _checks, _cifar10, _quick

CONFIG = _cifar10.low_pass(_cifar10.DENSENET121)
QUICK = _quick.deep(CONFIG)
CHECKS = _checks.LOW_PASS
