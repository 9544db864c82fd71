"""Margins of ResNet-18 on MNIST along the diagonal of the DCT.

    python -m experiments run mnist_resnet18

Claim: the median margin grows from the low to the high frequencies, fivefold at the least.
"""

from experiments.configs import _checks, _mnist, _quick

CONFIG = _mnist.RESNET18
QUICK = _quick.deep(CONFIG)
CHECKS = (_checks.MNIST_ACCURACY, _checks.MNIST_GROWS)
