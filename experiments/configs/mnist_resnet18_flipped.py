"""Margins of ResNet-18 on MNIST with all frequencies flipped, beside those on plain data.

    python -m experiments run mnist_resnet18_flipped

Claim: the data decide, not the architecture. The margins flip along: large at low frequencies, small at high ones.
"""

from experiments.configs import _checks, _flipped, _mnist, _quick

CONFIG = _flipped.flipped(_mnist.RESNET18)
QUICK = _quick.deep(CONFIG)
CHECKS = (_checks.MNIST_ACCURACY, _checks.FLIPS)
