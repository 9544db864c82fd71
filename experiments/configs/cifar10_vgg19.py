"""Margins of VGG-19 on CIFAR-10 along the diagonal of the DCT.

    python -m experiments run cifar10_vgg19

Claim: the median margin grows from the low to the high frequencies, threefold at the least.
"""

from experiments.configs import _checks, _cifar10, _quick

CONFIG = _cifar10.VGG19
QUICK = _quick.deep(CONFIG)
CHECKS = (_checks.CIFAR10_ACCURACY, _checks.CIFAR10_GROWS)
