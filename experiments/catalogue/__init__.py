"""The tables of experiments: each is {name: Experiment(config, quick, claims, note)}."""

from collections.abc import Mapping

from experiments.catalogue import (
    beyond_the_paper,
    cifar10,
    digits,
    families,
    frequency_map,
    generalization,
    imagenet,
    mnist,
    synthetic,
)
from experiments.experiment import Experiment

TABLES: Mapping[str, Mapping[str, Experiment]] = {
    "digits of scikit-learn": digits.TABLE,
    "MNIST": mnist.TABLE,
    "CIFAR-10": cifar10.TABLE,
    "ImageNet": imagenet.TABLE,
    "synthetic samples": synthetic.TABLE,
    "beyond the paper, on MNIST": beyond_the_paper.TABLE,
    "families of features": families.TABLE,
    "single frequencies": frequency_map.TABLE,
    "margins and generalization": generalization.TABLE,
}
