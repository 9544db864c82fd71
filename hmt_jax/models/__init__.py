"""The networks of the paper, with their normalisation, as classifiers."""

from hmt_jax.models._create import create, from_torch, names
from hmt_jax.models._files import load, save
from hmt_jax.models._normalization import Normalized
from hmt_jax.models.lenet import LeNet
from hmt_jax.models.mlp import MLP, Logistic

__all__ = ["MLP", "LeNet", "Logistic", "Normalized", "create", "from_torch", "load", "names", "save"]
