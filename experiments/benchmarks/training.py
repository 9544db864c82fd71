"""The speed of training here, beside a plain PyTorch loop, and of reading a folder of images."""

import dataclasses
import importlib.util
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import NUM_REPEATS, forward_flops, matrix_rate, record, timed
from experiments.experiment import check_known
from hmt_jax import data, models, training

NUM_EPOCHS = NUM_REPEATS + 1
_RECIPE = training.Recipe(num_epochs=NUM_EPOCHS)
_NUM_FILES = 256


def throughput(names: Sequence[str], path: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Measures training and reading, prints what was found and writes it as JSON.

    `lenet_mnist`: LeNet on all of MNIST, beside PyTorch where that is installed. `resnet18_cifar10`: in float32 and
    bfloat16 with the share of the device's matrix rate, on a CPU in float32 alone, with a part of the images.
    `image_folder`: images read, cropped and brought to the device from a folder of JPEG files made for this, beside the
    rate at which a ResNet-50 trains on them.

    Args:
      names: of what to measure; all of it, if there are none.
      path: of the JSON file.
      data_dir: folder of prepared data sets.

    Raises:
      ValueError: for an unknown name.
    """
    for name in names:
        check_known("training workload", name, tuple(_MEASUREMENTS))
    record(path, "training", (row for name in names or _MEASUREMENTS for row in _MEASUREMENTS[name](data_dir)))


def _lenet(data_dir) -> Iterator[dict[str, Any]]:
    mnist = data.load("mnist", data_dir)
    row: dict[str, Any] = {"workload": "lenet_mnist", **rates_of("lenet", mnist.train_images, mnist.train_labels)}
    if importlib.util.find_spec("torch") is not None:
        row["pytorch_images_per_s"] = _torch_lenet(mnist)
    yield row


def _resnet18(data_dir) -> Iterator[dict[str, Any]]:
    cifar = data.load("cifar10", data_dir)
    is_cpu = jax.default_backend() == "cpu"
    images, labels = (array[: 640 if is_cpu else None] for array in (cifar.train_images, cifar.train_labels))
    for dtype in ("float32",) if is_cpu else ("float32", "bfloat16"):
        rates = rates_of("resnet18_cifar", images, labels, compute_dtype=dtype)
        yield {"workload": f"resnet18_cifar10_{dtype}", **rates}


def _image_folder(data_dir) -> Iterator[dict[str, Any]]:
    """Rates of reading alone, and of training steps alone."""
    from PIL import Image

    batch_size = 8 if jax.default_backend() == "cpu" else 128
    with tempfile.TemporaryDirectory() as path:
        rng = np.random.default_rng(0)
        for index in range(_NUM_FILES):
            # Smooth, as photographs are; noise would take longer to decode.
            small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            file = pathlib.Path(path) / f"class{index % 2}" / f"{index}.jpg"
            file.parent.mkdir(exist_ok=True)
            small.resize((500, 375)).save(file, quality=90)
        loader = data.loader(data.image_folder(path), batch_size=batch_size, num_workers=jax.local_device_count() + 3)
        _, _, seconds = timed(lambda: [jax.block_until_ready(batch) for batch in data.prefetch(loader.epoch(0))])
    images = jnp.zeros((2 * batch_size, 224, 224, 3), jnp.uint8)
    step = rates_of("resnet50", images, np.zeros(len(images), np.int32), batch_size=batch_size)
    rates = {"images_per_s": _NUM_FILES / seconds, "step_images_per_s": step["images_per_s"]}
    yield {"workload": "image_folder", **rates}


_MEASUREMENTS = {"lenet_mnist": _lenet, "resnet18_cifar10": _resnet18, "image_folder": _image_folder}


def rates_of(network, images, labels, **settings) -> dict[str, float]:
    """Images a second and what follows, in training by a recipe with these settings.

    They are medians over the epochs but the first, which compiles.
    """
    classifier = models.create(network, jax.random.key(0), image_shape=images.shape[1:], num_classes=10)
    recipe, times = dataclasses.replace(_RECIPE, **settings), [time.perf_counter()]
    training.train(
        classifier, images, labels, recipe, jax.random.key(1), on_epoch=lambda *_: times.append(time.perf_counter())
    )
    first, *others = np.diff(times)
    seconds = statistics.median(others)
    images_per_s = len(images) / seconds
    # A training step costs three forward passes: one, and a gradient with respect to inputs and one to parameters.
    flops_per_s = 3 * forward_flops(classifier, data.as_floats(images[:1])) * images_per_s
    # Of products as a step's: on accelerators those of float32 may be of less precision.
    rate = matrix_rate(recipe.compute_dtype, "default")
    return {
        "images_per_s": images_per_s,
        "compile_seconds": first - seconds,
        "flops_per_s": flops_per_s,
        "matrix_flops_per_s": rate,
        "share_of_matrix_rate": flops_per_s / rate,
    }


def _torch_lenet(mnist: data.Dataset) -> float:
    """Images a second of a plain PyTorch loop with the same network, recipe and batch size."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.tensor(np.moveaxis(data.as_floats(mnist.train_images), -1, 1)).contiguous().to(device)
    labels = torch.tensor(mnist.train_labels).long().to(device)
    nn = torch.nn
    network = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    ).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=_RECIPE.momentum, weight_decay=_RECIPE.weight_decay
    )

    def epoch():
        for batch in torch.randperm(len(images)).to(device).split(_RECIPE.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), _RECIPE.max_gradient_norm)
            optimizer.step()
        loss.item()  # waits for the device

    return len(images) / timed(epoch)[2]
