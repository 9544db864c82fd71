"""The workloads of the benchmark: networks, images and subspaces, of the sizes of the paper's experiments.

Networks with random weights have boundaries where no trained network has them; they take three steps for every pair at
the most, about as many as trained ones need.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hmt_jax import data, models, subspaces, training


class Workload(NamedTuple):
    """Networks, images and subspaces, ready to be measured."""

    network: str
    classifier: models.Normalized
    images: np.ndarray
    subspaces: Sequence[subspaces.Subspace]
    max_steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe for a workload.

    Attributes:
      build: makes it for a number of images, from a folder of prepared data sets.
      num_images: on accelerators, as many as the paper measures.
      num_images_cpu: on a CPU; 0 if it is too much for one.
      num_reference: images of the reference's loop, which takes them one by one.
    """

    build: Callable[[int, str | None], Workload]
    num_images: int
    num_images_cpu: int
    num_reference: int


def lenet_mnist(num_images: int, data_dir: str | None) -> Workload:
    """LeNet after two epochs on MNIST, test images, and the 21 windows of 8 x 8."""
    mnist = data.load("mnist", data_dir)
    classifier = models.create(
        "lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=10, mean=(0.1307,), std=(0.3081,)
    )
    recipe = training.Recipe(num_epochs=2)
    classifier = training.train(classifier, mnist.train_images, mnist.train_labels, recipe, jax.random.key(1))
    images = data.as_floats(np.resize(mnist.test_images, (num_images, 28, 28, 1)))
    return Workload("lenet", classifier, images, subspaces.dct_diagonal((28, 28, 1), size=8, step=1), 100)


def resnet18_cifar10(num_images: int, data_dir: str | None) -> Workload:
    """ResNet-18 with random weights, test images of CIFAR-10, and the 13 windows of 8 x 8."""
    cifar = data.load("cifar10", data_dir)
    classifier = models.create(
        "resnet18_cifar",
        jax.random.key(0),
        image_shape=(32, 32, 3),
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
    )
    images = data.as_floats(cifar.test_images[:num_images])
    return Workload("resnet18_cifar", classifier, images, subspaces.dct_diagonal((32, 32, 3), size=8, step=2), 3)


def mlp_synthetic(num_images: int, data_dir: str | None) -> Workload:
    """An MLP trained on T1, samples in 100 dimensions; the span of the discriminative direction, and its complement."""
    samples_key, init_key, order_key = jax.random.split(jax.random.key(0), 3)
    samples = data.synthetic_linear(samples_key, max(num_images, 2000))
    line = subspaces.from_basis(samples.basis[:, :1], samples.image_shape)
    classifier = models.create("mlp", init_key, image_shape=samples.image_shape, num_classes=2)
    recipe = training.Recipe(num_epochs=5)
    classifier = training.train(classifier, samples.images, samples.labels, recipe, order_key)
    images = np.asarray(samples.images[:num_images])
    return Workload("mlp", classifier, images, [line, subspaces.orthogonal_complement(line)], 100)


def resnet50_imagenet(num_images: int, data_dir: str | None) -> Workload:
    """ResNet-50 with random weights, random images of 224 x 224, and the 14 windows of 16 x 16."""
    shape = (224, 224, 3)
    classifier = models.create(
        "resnet50", jax.random.key(0), image_shape=shape, num_classes=1000, mean=(0.485, 0.456, 0.406), std=(0.225,)
    )
    images = np.asarray(jax.random.uniform(jax.random.key(1), (num_images, *shape)))
    return Workload("resnet50", classifier, images, subspaces.dct_diagonal(shape, size=16, step=16), 3)


PLANS = {
    "lenet_mnist": Plan(lenet_mnist, num_images=1000, num_images_cpu=1000, num_reference=3),
    "resnet18_cifar10": Plan(resnet18_cifar10, num_images=1000, num_images_cpu=8, num_reference=1),
    "mlp_synthetic": Plan(mlp_synthetic, num_images=10000, num_images_cpu=10000, num_reference=50),
    "resnet50_imagenet": Plan(resnet50_imagenet, num_images=128, num_images_cpu=0, num_reference=1),
}
