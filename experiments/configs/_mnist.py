"""What the experiments on MNIST share."""

import dataclasses

from experiments.diagonal import DiagonalMargins

LENET = DiagonalMargins(data="mnist", network="lenet", window_size=8, window_step=1)
RESNET18 = dataclasses.replace(LENET, network="resnet18_mnist")


def high_pass(config: DiagonalMargins) -> DiagonalMargins:
    """Without the frequencies [0, 14) x [0, 14), a quarter of all, which hold nearly all of what the eye needs."""
    return dataclasses.replace(config, manipulation="cutoff_low:14", baseline="plain_data")


def robust(config: DiagonalMargins) -> DiagonalMargins:
    """With adversarial training, of which an epoch costs eight others; after ten, accuracies hardly move."""
    return dataclasses.replace(
        config,
        num_epochs=10,
        attack="pgd",
        epsilon=2.0,
        attack_steps=7,
        evaluation_steps=40,
        baseline="standard_training",
    )
