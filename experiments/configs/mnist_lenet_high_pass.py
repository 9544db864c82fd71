"""Margins of LeNet on MNIST without the frequencies [0, 14) x [0, 14), beside those on plain data.

    python -m experiments run mnist_lenet_high_pass

Claim: the network learns from the band that is left, and has small margins there.
"""

from experiments.configs import _checks, _mnist, _quick

CONFIG = _mnist.high_pass(_mnist.LENET)
QUICK = _quick.small(CONFIG)
CHECKS = _checks.HIGH_PASS
