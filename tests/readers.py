"""The files that the library reads, each with a reader: for tests of what damaged and hostile files do."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import linear_logits, linear_parameters, random_images, with_parameters
from PIL import Image

import hmt_jax
from hmt_jax import data, models, report, subspaces, training
from hmt_jax._images import Images
from hmt_jax.checkpoints import Checkpoints
from hmt_jax.cli import _images

SHAPE = (4, 4, 1)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)


class Reader(NamedTuple):
    """A kind of file.

    Attributes:
      write: writes the files into a folder.
      read: what the library reads from that folder, as a tree of arrays.
      is_checked: whether checksums cover every number in the files.
      cost: how many times as long as the others one reading takes.
      moves: whether the reader sets damaged files aside.
    """

    write: Callable[[Any], None]
    read: Callable[[Any], Any]
    is_checked: bool = False
    cost: int = 1
    moves: bool = False


def _measured(name, **options):
    """The pixels as `hmt measure` reads them."""

    def read(folder):
        found = _images.load(str(folder / name), **{"resize": None, "crop": None, "data_dir": None, **options})
        images = Images(found.read())
        return np.concatenate([chunk.own.copy() for chunk in images.chunks(2)])

    return read


def _pictures(suffix, **options):
    def write(folder):
        (folder / "pictures" / "a").mkdir(parents=True)
        for number, pixels in enumerate(PIXELS):
            picture = Image.fromarray(np.kron(pixels[..., 0], np.ones((4, 4), np.uint8)))
            picture.save(folder / "pictures" / "a" / f"{number}{suffix}", **options)

    return write


def _of_folder(folder):
    source = data.image_folder(folder / "pictures", resize=16, crop=16)
    return [source[number] for number in range(len(source))]


WEIGHTS = {"linear.weight": np.arange(48, dtype=np.float32).reshape(3, 16) / 7, "linear.bias": np.ones(3, np.float32)}
ARCHITECTURE = {"name": "logistic", "image_shape": SHAPE, "num_classes": 3}


def _of_weights(name):
    def read(folder):
        return jax.tree.leaves(models.from_torch("logistic", folder / name, image_shape=SHAPE, mean=(0,), std=(1,)))

    return read


def _safetensors(folder):
    from safetensors.numpy import save_file

    save_file(WEIGHTS, folder / "it.safetensors")


@functools.cache
def _network():
    return models.from_torch("logistic", WEIGHTS, image_shape=SHAPE, mean=(0,), std=(1,))


def _loaded(folder):
    classifier, header = models.load(folder / "it.safetensors")
    return jax.tree.leaves(classifier), str(header)


@functools.cache
def _result():
    classifier = with_parameters(linear_logits, linear_parameters(3, 16), jnp.float32)
    images, whole = random_images(4, *SHAPE, dtype="float32"), subspaces.full(SHAPE)
    return hmt_jax.measure_margins(
        classifier, images, whole, hmt_jax.solvers.DeepFool(), keep_coordinates=True, devices=jax.devices()[:1]
    )


def _fields(result):
    return {name: value for name, value in vars(result).items() if value is not None}


def _store(folder):
    result = _result()
    settings = {"solver": result.solver, "precision": result.precision, "dimensions": [16]}
    store = hmt_jax.MarginStore.create(folder / "it.zarr", num_subspaces=1, num_images=4, chunk_size=2, **settings)
    for chunk in range(2):
        store.write(chunk, result[:, store.images_of(chunk)])


def _exported(folder):
    hmt_jax.save_exported(_linear(), SHAPE, folder / "it.hmt")


@functools.cache
def _linear():
    return with_parameters(linear_logits, linear_parameters(3, 16), jnp.float32)


def _of_exported(folder):
    loaded = hmt_jax.load_exported(folder / "it.hmt")
    return loaded.arrays, str(loaded.network.image_shape), tuple(map(bytes, loaded.network.serialized))


def _measurements(folder):
    report.save(folder / "it.npz", [report.Measurement(name="linear", result=_result(), subspaces=["whole space"])])


def _of_measurements(folder):
    [found] = report.load(folder / "it.npz")
    return found.name, _fields(found.result)


@functools.cache
def _state():
    return training.start(_network(), training.Recipe(), num_samples=10)


def _checkpoints(folder):
    with Checkpoints(folder / "run") as kept:
        for epoch in range(2):
            kept.save(epoch, _state(), score=epoch, history=[0])


def _of_checkpoints(folder):
    with Checkpoints(folder / "run") as kept:
        return jax.tree.leaves(kept.restore(_state()))


READERS = {
    "npy": Reader(lambda folder: np.save(folder / "it.npy", PIXELS), _measured("it.npy")),
    "npz": Reader(lambda folder: np.savez(folder / "it.npz", images=PIXELS), _measured("it.npz"), True),
    "compressed npz": Reader(
        lambda folder: np.savez_compressed(folder / "it.npz", images=PIXELS), _measured("it.npz"), True
    ),
    "png": Reader(_pictures(".png"), _measured("pictures"), True),
    **{
        suffix: Reader(_pictures(f".{suffix}"), _measured("pictures", resize=16, crop=16))
        for suffix in ("jpg", "bmp", "tiff", "webp", "pgm")
    },
    "image folder": Reader(_pictures(".png"), _of_folder, True),
    "weights npz": Reader(lambda folder: np.savez(folder / "it.npz", **WEIGHTS), _of_weights("it.npz"), True, cost=4),
    "weights safetensors": Reader(_safetensors, _of_weights("it.safetensors"), cost=4),
    "model": Reader(
        lambda folder: models.save(folder / "it.safetensors", _network(), architecture=ARCHITECTURE), _loaded, cost=4
    ),
    "exported": Reader(_exported, _of_exported, True, cost=2),
    "result": Reader(
        lambda folder: _result().save(folder / "it.npz"),
        lambda folder: _fields(hmt_jax.MarginResult.load(folder / "it.npz")),
        True,
    ),
    "measurements": Reader(_measurements, _of_measurements, True),
    "store": Reader(_store, lambda folder: _fields(hmt_jax.MarginStore.open(folder / "it.zarr").read()), True),
    "checkpoints": Reader(_checkpoints, _of_checkpoints, True, cost=50, moves=True),
}
