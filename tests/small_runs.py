"""Stand-ins for slow networks and data, in tests of whole experiments on a trained network."""

import dataclasses

import jax
import numpy as np

from experiments import registry
from hmt_jax import data


def one_device(patch):
    """Uses one device, because simulated devices would wait for each other in every step."""
    devices = jax.devices()[:1]
    patch.setattr(jax, "local_devices", lambda: devices)


def small_digits(patch):
    """Uses one device, and a network for `digits` that is trained quickly."""
    one_device(patch)
    digits = registry.get("digits")
    small = dataclasses.replace(digits.quick, network="logistic", num_epochs=2, num_images=12)
    patch.setitem(registry._EXPERIMENTS, "digits", dataclasses.replace(digits, quick=small))


def small_baseline(name, patch):
    """The same for the network that an experiment measures, on made-up images."""
    one_device(patch)
    baseline = registry.get(registry.get(name).config.baseline)
    settings = {"network": "logistic", "num_train": 0, "num_test": 0, "num_epochs": 1, "num_images": 2}
    small = dataclasses.replace(baseline.quick, **settings, window_step=20)
    patch.setattr(data, "load", _stand_in)
    patch.setitem(registry._EXPERIMENTS, registry.get(name).config.baseline, dataclasses.replace(baseline, quick=small))


def _stand_in(name, data_dir):
    """A data set of three classes: a faint template for each, under noise."""
    rng, shape = np.random.default_rng(0), {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[name]
    labels = np.arange(200) % 3
    images = 100 + rng.uniform(0, 20, (3, *shape))[labels] + rng.uniform(0, 100, (200, *shape))
    images = images.astype(np.uint8)
    return data.from_arrays(images[:150], labels[:150], images[150:], labels[150:], name)
