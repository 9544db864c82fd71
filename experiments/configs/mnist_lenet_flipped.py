"""Margins of LeNet on MNIST with all frequencies flipped, beside those on plain data.

    python -m experiments run mnist_lenet_flipped

Claim: the data decide, not the architecture. The margins flip along: large at low frequencies, small at high ones.
"""

from experiments.configs import _checks, _flipped, _mnist, _quick

CONFIG = _flipped.flipped(_mnist.LENET)
QUICK = _quick.small(CONFIG)
CHECKS = (_checks.MNIST_ACCURACY, _checks.FLIPS)
