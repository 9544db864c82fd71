"""Training of classifiers, plain or adversarial, and exact evaluation.

The recipe is the paper's: SGD with momentum, coupled weight decay on all parameters, clipping of the gradient's global
norm, and a learning rate that rises and falls linearly. Arrays stay on the device, and an epoch is one compiled loop
over its batches, or one for every 32 with `on_step`, so that nothing is copied between host and device. On CPU, where
XLA makes slow code of convolutions inside loops, the host runs the loop. Batches are split over the devices that can
share them evenly, or over those of all processes if JAX runs in several. Each device holds a copy of the parameters and
of the data, and batch norm takes its statistics over the whole batch.
"""

from hmt_jax.training._evaluate import evaluate
from hmt_jax.training._recipe import Recipe, crop_and_mirror, triangular_schedule
from hmt_jax.training._state import TrainState, classifier_of, start
from hmt_jax.training._step import Metrics
from hmt_jax.training._stream import Stream
from hmt_jax.training._train import Module, train, train_on_stream

__all__ = [
    "Metrics",
    "Module",
    "Recipe",
    "Stream",
    "TrainState",
    "classifier_of",
    "crop_and_mirror",
    "evaluate",
    "start",
    "train",
    "train_on_stream",
    "triangular_schedule",
]
