"""Margins of LeNet on flipped MNIST after adversarial training, beside those after standard training.

    python -m experiments run mnist_lenet_flipped_robust

Claim: the effect of adversarial training flips along with the data, and is largest at low frequencies. Perturbed
images, flipped back, stay images: Dykstra's algorithm goes to both the ball and the pixels' range.
"""

from experiments.configs import _checks, _flipped, _mnist, _quick

CONFIG = _mnist.robust(_flipped.flipped(_mnist.LENET))
QUICK = _quick.small(CONFIG)
CHECKS = (*_checks.FLIPPED_MNIST_ROBUSTNESS, _checks.LARGER, _checks.LARGER_AT_LOW)
