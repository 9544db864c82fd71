"""Margins of DenseNet-121 on CIFAR-10 with all frequencies flipped, beside those on plain data.

    python -m experiments run cifar10_densenet121_flipped

Claim: the data decide, not the architecture. The margins flip along: large at low frequencies, small at high ones.
"""

from experiments.configs import _checks, _cifar10, _flipped, _quick

CONFIG = _flipped.flipped(_cifar10.DENSENET121)
QUICK = _quick.deep(CONFIG)
CHECKS = (_checks.FLIPPED_CIFAR10_ACCURACY, _checks.FLIPS, _checks.MIRRORS)
