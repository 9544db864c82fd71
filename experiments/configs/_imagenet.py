"""What the experiments on ImageNet share, and the claims on them."""

import dataclasses

from experiments import claims
from experiments.checks import Check
from experiments.configs import _checks
from experiments.imagenet import GivenWeights

RESNET50 = GivenWeights(network="resnet50")


def quick(config: GivenWeights) -> GivenWeights:
    """Two small images in four windows: these networks take images of any size from 32 x 32."""
    return dataclasses.replace(config, resize=64, crop=64, num_images=2, max_steps=5)


ACCURACY = _checks.accuracy(
    0.65,
    "Those of torchvision reach 72% to 76%. Seven points are left for chance, two on a thousand images, and for other "
    "ways to resize; less says that the weights, the images or the order of their classes are others.",
)
ROBUST_ACCURACY = _checks.accuracy(
    0.5, "Published weights for an L2 radius of 3 reach 58%; eight points less on other images or after less training."
)
FLIPPED_ACCURACY = _checks.accuracy(
    0.3, "Convolutions are made for plain photographs, and fit flipped ones less well; chance is 0.1%."
)
GROWS = Check(
    "margin in the highest window over that in the lowest",
    claims.highest_over_lowest,
    "As on CIFAR-10: photographs have edges and textures that tell classes apart at higher frequencies than strokes of "
    "a pen; three times is still far beyond the noise.",
    at_least=3,
)
