"""Margins of VGG-19 on flipped CIFAR-10 after adversarial training, beside those after standard training.

    python -m experiments run cifar10_vgg19_flipped_robust

Claim: the effect of adversarial training flips along with the data, and is largest at low frequencies. Perturbed
images, flipped back, stay images: Dykstra's algorithm goes to both the ball and the pixels' range.
"""

from experiments.configs import _checks, _cifar10, _flipped, _quick

CONFIG = _cifar10.robust(_flipped.flipped(_cifar10.VGG19))
QUICK = _quick.deep(CONFIG)
CHECKS = (*_checks.FLIPPED_CIFAR10_ROBUSTNESS, _checks.LARGER, _checks.LARGER_AT_LOW)
