"""Margins of ResNet-50 on ImageNet after adversarial training, beside those after standard training.

    python -m experiments run imagenet_resnet50_robust --set weights=FILE baseline_weights=FILE images=FOLDER

Claim: adversarial training enlarges margins in every window, most of all at high frequencies. The paper's network is
trained against PGD in an L2 ball of radius 3; `baseline_weights` are those of torchvision.
"""

import dataclasses

from experiments.configs import _checks, _imagenet

CONFIG = dataclasses.replace(_imagenet.RESNET50, baseline="standard_training")
QUICK = _imagenet.quick(CONFIG)
CHECKS = (_imagenet.ROBUST_ACCURACY, _checks.LARGER, _checks.LARGER_AT_HIGH)
