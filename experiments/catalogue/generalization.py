"""The experiments on margins and generalization, and the numbers that decide their claims."""

import dataclasses
import pathlib
from typing import Any

from experiments import generalization
from experiments.claims import Claim
from experiments.experiment import Experiment
from experiments.generalization import COMPONENTS, Generalization
from hmt_jax.estimates import Estimate, from_samples


def gain_of_components(path: pathlib.Path) -> Estimate:
    """Kendall's rank correlation of margins in the leading components with accuracy, less that in the whole space."""
    return generalization.gain(generalization.read(path), COMPONENTS)


def correlation_of_components(path: pathlib.Path) -> Estimate:
    """Kendall's rank correlation, over the networks, of mean margins in the leading components with test accuracy."""
    found = generalization.read(path)
    return from_samples(generalization.kendall, found.mean_margins(COMPONENTS, "tight"), found.test_accuracy)


_MNIST = Generalization(data="mnist")
_CIFAR10 = Generalization(data="cifar10")
_QUICK: dict[str, Any] = {
    "num_networks": 6,
    "num_train": 128,
    "num_images": 10,
    "num_test": 500,
    "widths": (4,),
    "depths": (1,),
    "batch_sizes": (32,),
    "dropout_rates": (0.0, 0.2),
    "weight_decays": (0.01,),
    "wrong_shares": (0.0, 0.3),
    "target_loss": 0.5,
    "max_epochs": 100,
    "effort": "quick",
}
_CLAIMS = [
    Claim(
        "rank correlation of margins in the leading components with test accuracy, less that in the whole space",
        gain_of_components,
        "Mouton et al. find that margins in the whole space tell little, and those in the components much. If "
        "accuracies were exchanged among 48 networks at random, the rank correlation would have a standard deviation "
        "of 0.1.",
        at_least=0.1,
    ),
    Claim(
        "rank correlation of margins in the leading components with test accuracy",
        correlation_of_components,
        "Three standard deviations from chance.",
        at_least=0.3,
    ),
]
_NOTE = """Margins and generalization: 48 small networks on {data}, ordered by their margins and by test accuracy.

Claim: margins of training images order networks trained to one loss by their test accuracy if perturbations stay in
the span of the leading principal components of the training images, and less so in the whole space. This is the result
of Mouton, Theunissen and Davel, "Input margins can predict generalization too" (AAAI 2024, arXiv:2308.15466).

Half of the networks are convolutional. They differ in width, depth, batch size, dropout, weight decay, and the share of
wrong labels among the {number} images that they are trained on. The number of components is at the elbow of the curve
of explained variance, where it is furthest above its chord. Margins in the span of as many
random directions, and in a low band of the DCT, tell what is due to the components and what to having fewer dimensions.
DeepFool's margins show whether tightness matters.
"""

TABLE = {
    name: Experiment(
        config=config,
        quick=dataclasses.replace(config, **_QUICK),
        claims=_CLAIMS,
        note=_NOTE.format(data=data, number=config.num_train),
    )
    for name, data, config in (("generalization", "MNIST", _MNIST), ("generalization_cifar10", "CIFAR-10", _CIFAR10))
}
