"""The workloads of the benchmark: networks, images and subspaces, of the sizes of the paper's experiments.

Networks with random weights have boundaries where no trained network has them; they take three steps for every pair at
the most, about as many as trained ones need.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import hmt_jax
from experiments.benchmarks.timing import NUM_REPEATS, timed
from hmt_jax import data, models, solvers, subspaces, training

_THREE_STEPS = solvers.DeepFool(max_steps=3)


class Workload(NamedTuple):
    """A classifier, whose network is named, with what is measured on it."""

    network: str
    classifier: models.Normalized
    images: np.ndarray
    subspaces: Sequence[subspaces.Subspace]
    solver: solvers.Solver = solvers.DeepFool()

    def measure(
        self, num_repeats: int = NUM_REPEATS, *, precision: str = "highest", batch_size: int | None = None
    ) -> tuple[hmt_jax.MarginResult, float, float]:
        """The margins, with the seconds that they took, as `timed` returns them."""
        # Synthetic samples are no images.
        with warnings.catch_warnings(action="ignore", category=hmt_jax.PixelRangeWarning):
            options: Any = {"precision": precision, "batch_size": batch_size}
            return timed(lambda: hmt_jax.measure_margins(*self[1:], **options), num_repeats)


class Plan(NamedTuple):
    """A recipe for a workload: what makes it for a number of images, from a folder of prepared data sets, and numbers.

    Accelerators measure as many images as the paper. `num_images_cpu` is 0 if a workload is too much for a CPU. The
    authors' loop, which takes images one by one, measures the first `num_reference`.
    """

    build: Callable[[int, str | None], Workload]
    num_images: int
    num_images_cpu: int
    num_reference: int


def lenet_mnist(num_images: int, data_dir: str | None) -> Workload:
    """LeNet after two epochs on MNIST, test images, and the 21 windows of 8 x 8."""
    mnist = data.load("mnist", data_dir)
    shape = mnist.image_shape
    classifier = _create("lenet", shape, 10, mean=(0.1307,), std=(0.3081,))
    recipe = training.Recipe(num_epochs=2)
    classifier = training.train(classifier, mnist.train_images, mnist.train_labels, recipe, jax.random.key(1))
    images = data.as_floats(np.resize(mnist.test_images, (num_images, *shape)))
    return Workload("lenet", classifier, images, subspaces.dct_diagonal(shape, size=8, step=1))


def resnet18_cifar10(num_images: int, data_dir: str | None) -> Workload:
    """ResNet-18 with random weights, test images of CIFAR-10, and the 13 windows of 8 x 8."""
    cifar = data.load("cifar10", data_dir)
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    classifier = _create("resnet18_cifar", cifar.image_shape, 10, mean=mean, std=std)
    windows = subspaces.dct_diagonal(cifar.image_shape, size=8, step=2)
    return Workload("resnet18_cifar", classifier, data.as_floats(cifar.test_images[:num_images]), windows, _THREE_STEPS)


def mlp_synthetic(num_images: int, data_dir: str | None) -> Workload:
    """An MLP trained on T1, samples in 100 dimensions; the span of the discriminative direction, and its complement."""
    samples_key, init_key, order_key = jax.random.split(jax.random.key(0), 3)
    samples = data.synthetic_linear(samples_key, max(num_images, 2000))
    line = subspaces.from_basis(samples.basis[:, :1], samples.image_shape)
    classifier = models.create("mlp", init_key, image_shape=samples.image_shape, num_classes=2)
    recipe = training.Recipe(num_epochs=5)
    classifier = training.train(classifier, samples.images, samples.labels, recipe, order_key)
    images = np.asarray(samples.images[:num_images])
    return Workload("mlp", classifier, images, [line, subspaces.orthogonal_complement(line)])


def resnet50_imagenet(num_images: int, data_dir: str | None) -> Workload:
    """ResNet-50 with random weights, random images of 224 x 224, and the 14 windows of 16 x 16."""
    shape = (224, 224, 3)
    classifier = _create("resnet50", shape, 1000, mean=(0.485, 0.456, 0.406), std=(0.225,))
    images = np.asarray(jax.random.uniform(jax.random.key(1), (num_images, *shape)))
    return Workload("resnet50", classifier, images, subspaces.dct_diagonal(shape, size=16, step=16), _THREE_STEPS)


def _create(name, image_shape, num_classes, mean, std):
    shape = {"image_shape": image_shape, "num_classes": num_classes}
    return models.create(name, jax.random.key(0), **shape, mean=mean, std=std)


PLANS = {
    "lenet_mnist": Plan(lenet_mnist, num_images=1000, num_images_cpu=1000, num_reference=3),
    "resnet18_cifar10": Plan(resnet18_cifar10, num_images=1000, num_images_cpu=8, num_reference=1),
    "mlp_synthetic": Plan(mlp_synthetic, num_images=10000, num_images_cpu=10000, num_reference=50),
    "resnet50_imagenet": Plan(resnet50_imagenet, num_images=128, num_images_cpu=0, num_reference=1),
}
