"""Margins of ResNet-50 on ImageNet with all frequencies flipped, beside those on plain data.

    python -m experiments run imagenet_resnet50_flipped --set weights=FILE baseline_weights=FILE images=FOLDER

Claim: the data decide, not the architecture. The margins flip along: large at low frequencies, small at high ones.
FILE holds the weights of a network trained on flipped images, less the flip of the mean image; the images in FOLDER are
plain, and are flipped here. `baseline_weights` are those of torchvision.
"""

import dataclasses

from experiments.configs import _checks, _imagenet

CONFIG = dataclasses.replace(_imagenet.RESNET50, manipulation="flip", baseline="plain_data")
QUICK = _imagenet.quick(CONFIG)
CHECKS = (_imagenet.FLIPPED_ACCURACY, _checks.FLIPS)
