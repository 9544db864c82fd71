"""The networks of the paper, with their normalisation, as classifiers."""

from hmt_jax.models._create import create, names
from hmt_jax.models._files import load, save
from hmt_jax.models._normalization import Normalized
from hmt_jax.models._torch import from_torch, to_torch
from hmt_jax.models._torch_module import TorchClassifier, from_torch_module
from hmt_jax.models._torch_program import load_torch_exported
from hmt_jax.models.densenet import CifarDenseNet, DenseNet
from hmt_jax.models.lenet import LeNet
from hmt_jax.models.mlp import MLP, Logistic
from hmt_jax.models.resnet import CifarResNet, ResNet
from hmt_jax.models.vgg import VGG, CifarVGG

__all__ = [
    "MLP",
    "VGG",
    "CifarDenseNet",
    "CifarResNet",
    "CifarVGG",
    "DenseNet",
    "LeNet",
    "Logistic",
    "Normalized",
    "ResNet",
    "TorchClassifier",
    "create",
    "from_torch",
    "from_torch_module",
    "load",
    "load_torch_exported",
    "names",
    "save",
    "to_torch",
]
