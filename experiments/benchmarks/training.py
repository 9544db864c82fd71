"""The speed of training here, beside a plain PyTorch loop, and of reading a folder of images."""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import store
from experiments.benchmarks.margins import forward_flops, matrix_rate
from hmt_jax import data, models, training

_NUM_REPEATS = 3
_RECIPE = training.Recipe(num_epochs=_NUM_REPEATS + 1)
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
    if unknown := [name for name in names if name not in _MEASUREMENTS]:
        raise ValueError(f"unknown training workload {unknown[0]!r}; the known ones are {', '.join(_MEASUREMENTS)}")
    rows: dict[str, Any] = {}
    store.make(path.parent)
    for name in names or _MEASUREMENTS:
        rows |= _MEASUREMENTS[name](data_dir)
        store.write_json(path, {"environment": store.environment(), "training": rows})
    print(f"\nresults: {path}")


def _lenet(data_dir) -> dict[str, Any]:
    mnist = data.load("mnist", data_dir)
    classifier = models.create("lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=10)
    row = _rates(classifier, mnist.train_images, mnist.train_labels, _RECIPE)
    _print("LeNet on MNIST", row)
    if (theirs := _torch_lenet(mnist)) is not None:
        row["pytorch_images_per_s"] = theirs
        print(f"  {row['images_per_s'] / theirs:.2f} times as fast as PyTorch, {theirs:.0f} images/s", flush=True)
    return {"lenet_mnist": row}


def _resnet18(data_dir) -> dict[str, Any]:
    cifar = data.load("cifar10", data_dir)
    is_cpu = jax.default_backend() == "cpu"
    num_samples = 640 if is_cpu else len(cifar.train_images)
    rows = {}
    for dtype in ("float32",) if is_cpu else ("float32", "bfloat16"):
        classifier = models.create("resnet18_cifar", jax.random.key(0), image_shape=(32, 32, 3), num_classes=10)
        recipe = training.Recipe(num_epochs=_RECIPE.num_epochs, compute_dtype=dtype)
        row = _rates(classifier, cifar.train_images[:num_samples], cifar.train_labels[:num_samples], recipe)
        rows[f"resnet18_cifar10_{dtype}"] = row
        _print(f"ResNet-18 on CIFAR-10, {dtype}", row)
    return rows


def _rates(classifier, images, labels, recipe) -> dict[str, float]:
    """Medians over the epochs but the first, which compiles."""
    ends = []
    started = time.perf_counter()
    training.train(
        classifier, images, labels, recipe, jax.random.key(1), on_epoch=lambda *_: ends.append(time.perf_counter())
    )
    seconds = statistics.median(np.diff(ends))
    images_per_s = len(images) / seconds
    # A training step costs three forward passes: one, and a gradient with respect to inputs and one to parameters.
    flops_per_s = 3 * forward_flops(classifier, data.as_floats(images[:1])) * images_per_s
    # Of products as a step's: on accelerators those of float32 may be of less precision.
    rate = matrix_rate(recipe.compute_dtype, "default")
    return {
        "images_per_s": images_per_s,
        "compile_seconds": ends[0] - started - seconds,
        "flops_per_s": flops_per_s,
        "matrix_flops_per_s": rate,
        "share_of_matrix_rate": flops_per_s / rate,
    }


def _torch_lenet(mnist: data.Dataset) -> float | None:
    """Images a second of a plain PyTorch loop with the same network, recipe and batch size; None without PyTorch."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.tensor(np.moveaxis(data.as_floats(mnist.train_images), -1, 1)).contiguous().to(device)
    labels = torch.tensor(mnist.train_labels).long().to(device)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(6, 16, 5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(400, 120),
        torch.nn.ReLU(),
        torch.nn.Linear(120, 84),
        torch.nn.ReLU(),
        torch.nn.Linear(84, 10),
    ).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=_RECIPE.momentum, weight_decay=_RECIPE.weight_decay
    )
    seconds = []
    for _ in range(_RECIPE.num_epochs):
        started = time.perf_counter()
        for batch in torch.randperm(len(images)).to(device).split(_RECIPE.batch_size):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _RECIPE.max_gradient_norm)
            optimizer.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return len(images) / statistics.median(seconds[1:])


def _image_folder(data_dir) -> dict[str, Any]:
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
        seconds = []
        for epoch in range(_NUM_REPEATS):
            started = time.perf_counter()
            for batch in data.prefetch(loader.epoch(epoch)):
                jax.block_until_ready(batch)
            seconds.append(time.perf_counter() - started)
    classifier = models.create("resnet50", jax.random.key(0), image_shape=(224, 224, 3), num_classes=2)
    images = jnp.zeros((2 * batch_size, 224, 224, 3), jnp.uint8)
    recipe = training.Recipe(num_epochs=_RECIPE.num_epochs, batch_size=batch_size)
    step = _rates(classifier, images, np.zeros(len(images), np.int32), recipe)["images_per_s"]
    reading = _NUM_FILES / statistics.median(seconds)
    print(f"JPEG files of 500 x 375: {reading:.0f} images/s; a ResNet-50 trains on {step:.1f} images/s", flush=True)
    return {"image_folder": {"images_per_s": reading, "step_images_per_s": step}}


def _print(name, row) -> None:
    print(
        f"{name}: {row['images_per_s']:.0f} images/s, {row['flops_per_s'] / 1e9:.0f} GFLOP/s, "
        f"{row['share_of_matrix_rate']:.0%} of the matrix rate",
        flush=True,
    )


_MEASUREMENTS = {"lenet_mnist": _lenet, "resnet18_cifar10": _resnet18, "image_folder": _image_folder}
