"""What the experiments on CIFAR-10 share."""

import dataclasses

from experiments.diagonal import DiagonalMargins

RESNET18 = DiagonalMargins(data="cifar10", network="resnet18_cifar", window_size=8, window_step=2)
# That of the paper: without batch norm, and with two hidden layers.
VGG19 = dataclasses.replace(RESNET18, network="vgg19_cifar", num_hidden=(512, 512))
DENSENET121 = dataclasses.replace(RESNET18, network="densenet121_cifar")


def low_pass(config: DiagonalMargins) -> DiagonalMargins:
    """With the frequencies [0, 16) x [0, 16) alone, a quarter of all."""
    return dataclasses.replace(config, manipulation="low_pass:16", baseline="plain_data")


def robust(config: DiagonalMargins) -> DiagonalMargins:
    """With adversarial training."""
    return dataclasses.replace(
        config, attack="pgd", epsilon=1.0, attack_steps=7, evaluation_steps=40, baseline="standard_training"
    )
