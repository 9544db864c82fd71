"""Margins of ResNet-18 on flipped MNIST after adversarial training, beside those after standard training.

    python -m experiments run mnist_resnet18_flipped_robust

Claim: the effect of adversarial training flips along with the data, and is largest at low frequencies. Perturbed
images, flipped back, stay images: Dykstra's algorithm goes to both the ball and the pixels' range.
"""

from experiments.configs import _checks, _flipped, _mnist, _quick

CONFIG = _mnist.robust(_flipped.flipped(_mnist.RESNET18))
QUICK = _quick.deep(CONFIG)
CHECKS = (*_checks.FLIPPED_MNIST_ROBUSTNESS, _checks.LARGER, _checks.LARGER_AT_LOW)
