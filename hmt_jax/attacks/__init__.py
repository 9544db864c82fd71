"""Adversarial attacks on batches of images, and the accuracy and loss under them.

An attack is an immutable callable pytree: `attack(classifier, images, labels, key)` returns perturbed images. It is a
pure function. Like a classifier, it can be passed to compiled functions and called inside a training step. No gradient
passes through it.

A perturbation has a norm of at most `epsilon`. Its domain bounds the pixels: those of the perturbed images are in
[0, 1] with "pixels"; those of the perturbed images flipped back are in [0, 1] with "flipped", which is meant for images
that `hmt_jax.frequency.flip` returned; and pixels may have any value with "unbounded". With a subspace, perturbations
lie in it.

These bounds hold up to rounding, a few 1e-6 of a pixel in float32. Together they may leave little room: an image with
many black pixels can't move in a subspace where every direction darkens one of them, such as a window without the
lowest frequencies for MNIST images. The attack then returns the image itself, or one that hardly differs.
"""

from hmt_jax.attacks._deepfool import DeepFool
from hmt_jax.attacks._evaluate import Attack, RobustMetrics, evaluate, perturb
from hmt_jax.attacks._pgd import PGD

__all__ = ["PGD", "Attack", "DeepFool", "RobustMetrics", "evaluate", "perturb"]
