"""Margins of LeNet on MNIST after adversarial training, beside those after standard training.

    python -m experiments run mnist_lenet_robust

Claim: adversarial training enlarges margins in every window, most of all at high frequencies.
"""

from experiments.configs import _checks, _mnist, _quick

CONFIG = _mnist.robust(_mnist.LENET)
QUICK = _quick.small(CONFIG)
CHECKS = (*_checks.MNIST_ROBUSTNESS, _checks.LARGER, _checks.LARGER_AT_HIGH)
