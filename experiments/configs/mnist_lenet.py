"""Margins of LeNet on MNIST along the diagonal of the DCT.

    python -m experiments run mnist_lenet

Claim: the median margin grows from the low to the high frequencies, fivefold at the least.
"""

from experiments.configs import _checks, _mnist, _quick

CONFIG = _mnist.LENET
QUICK = _quick.small(CONFIG)
CHECKS = (_checks.MNIST_ACCURACY, _checks.MNIST_GROWS)
