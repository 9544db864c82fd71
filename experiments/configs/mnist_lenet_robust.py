"""Margins of LeNet on MNIST after adversarial training, beside the same network's after standard training.

    python -m experiments run mnist_lenet_robust

Claim: adversarial training enlarges margins in every window, most of all at high frequencies.
"""

import dataclasses

from experiments.configs import mnist_lenet

# An epoch of adversarial training costs eight of standard training; after ten, accuracies hardly move.
CONFIG = dataclasses.replace(
    mnist_lenet.CONFIG,
    num_epochs=10,
    attack="pgd",
    epsilon=2.0,
    attack_steps=7,
    evaluation_steps=40,
    with_baseline=True,
)
QUICK = dataclasses.replace(CONFIG, num_epochs=1, num_images=10)
CHECKS = ()
