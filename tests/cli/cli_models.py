"""Models that the tests of the command line name. Those that work share their compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np

CONSTANT = 3


def _logits(weights, images):
    return jnp.tanh(images.reshape(len(images), -1) @ weights)


def _classifier(seed, num_pixels=64):
    weights = np.random.default_rng(seed).normal(size=(num_pixels, 3), scale=0.05)
    return jax.tree_util.Partial(_logits, jnp.asarray(weights, jnp.float32))


def make():
    return _classifier(0)


def other():
    return _classifier(1)


def colour():
    return _classifier(0, 192)


def raises():
    raise RuntimeError("no accelerator here")


def needs(size):
    return size


def exits():
    raise SystemExit("bye")


def nothing():
    return None


def pair():
    return jax.tree_util.Partial(lambda weights, images: (_logits(weights, images), images), _classifier(0).args[0])


def prints():
    print("loading weights")
    return make()
