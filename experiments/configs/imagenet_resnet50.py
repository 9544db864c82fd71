"""Margins of ResNet-50 on ImageNet along the diagonal of the DCT, from weights that are given.

    python -m experiments run imagenet_resnet50 --set weights=FILE images=FOLDER

Claim: the median margin grows from the low to the high frequencies, threefold at the least. FILE is a state dict of
torchvision's, and FOLDER the validation set, with a folder of images for each class.
"""

from experiments.configs import _imagenet

CONFIG = _imagenet.RESNET50
QUICK = _imagenet.quick(CONFIG)
CHECKS = (_imagenet.ACCURACY, _imagenet.GROWS)
