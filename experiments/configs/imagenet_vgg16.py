"""Margins of VGG-16 on ImageNet along the diagonal of the DCT, from weights that are given.

    python -m experiments run imagenet_vgg16 --set weights=FILE images=FOLDER

Claim: the median margin grows from the low to the high frequencies, threefold at the least. FILE is a state dict of
torchvision's, and FOLDER the validation set, with a folder of images for each class.
"""

import dataclasses

from experiments.configs import _imagenet

CONFIG = dataclasses.replace(_imagenet.RESNET50, network="vgg16")
QUICK = _imagenet.quick(CONFIG)
CHECKS = (_imagenet.ACCURACY, _imagenet.GROWS)
