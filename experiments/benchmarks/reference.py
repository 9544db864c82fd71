"""The authors' own loop, from a checkout of their repository, on networks with the weights of ours.

Their code is from 2020. It imports modules that the loop does not use, and a function that PyTorch has removed.
"""

import importlib.util
import pathlib
import runpy
import sys
import tempfile
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import timed
from experiments.benchmarks.workloads import Workload
from hmt_jax import data, models, training

_NETWORKS = {"lenet": ("mnist/lenet.py", "LeNet"), "resnet18_cifar": ("cifar10/resnet.py", "ResNet18")}
_STANDINS = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torch_dct")}
_GRADCHECK = types.SimpleNamespace(zero_gradients=lambda x: x.grad.detach_().zero_())  # as PyTorch had it until 2021


def check_reference(path: pathlib.Path) -> None:
    """Raises ValueError if the path is no checkout of the authors' repository, or torch is not installed."""
    if not (path / "utils.py").exists():
        raise ValueError(f"{path} is no checkout of LTS4/hold-me-tight: it has no utils.py")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("the reference needs PyTorch: pip install torch")


def seconds_per_pair(path: pathlib.Path, workload: Workload, num_images: int) -> float:
    """The seconds that the authors' subspace DeepFool takes for an image in a subspace, with up to ten candidates.

    Args:
      path: a checkout of the authors' repository.
      workload: of LeNet, ResNet-18, or an MLP, which the authors have not published: PyTorch's own layers make it here.
      num_images: images that are measured, in at most seven of the subspaces, spread evenly.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False  # in full float32, as margins are measured here
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(array):
        # A copy: PyTorch takes the strides of a moved channel axis for a layout that the network can't flatten.
        return torch.tensor(np.array(array, order="C")).to(device)

    classifier = workload.classifier
    mean, std = (tensor(value[...]).reshape(1, -1, 1, 1) for value in (classifier.mean, classifier.std))
    images = [tensor(np.moveaxis(image, -1, 0)[None]) for image in workload.images[:num_images]]
    chosen = np.unique(np.linspace(0, len(workload.subspaces) - 1, 7).round().astype(int))
    projectors = [tensor(_columns(workload.subspaces[r])) for r in chosen]
    network = _network(path, workload.network, classifier).to(device).eval()
    num_classes = min(10, network(images[0]).shape[1])
    deepfool = _run(path / "utils.py")["subspace_deepfool"]
    options = {"num_classes": num_classes, "max_iter": workload.solver.max_steps, "device": device}

    def loop():
        for projector in projectors:
            for image in images:
                deepfool(image, network, lambda x: (x - mean) / std, Sp=projector, **options)

    return timed(loop)[2] / (len(projectors) * len(images))


def trained(
    path: pathlib.Path, name: str, dataset: data.Dataset, mean: np.ndarray, std: np.ndarray, recipe: training.Recipe
) -> dict[str, Any]:
    """The state dict of a network after the authors' training, from PyTorch's own initial weights.

    Args:
      path: a checkout of the authors' repository.
      name: of a network that they have published, as `hmt_jax.models` names it.
      dataset: the images, which are on the device throughout.
      mean: subtracted from images in [0, 1], for each channel.
      std: divides them after that.
      recipe: the settings that the authors' scripts choose; the others are in their code.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _published(path, name).to(device)
    shift, scale = (torch.tensor(each, dtype=torch.float32, device=device).reshape(1, -1, 1, 1) for each in (mean, std))

    def batches(images, labels, order):
        pixels = torch.tensor(np.moveaxis(data.as_floats(images), -1, 1).copy(), device=device)
        found = torch.utils.data.TensorDataset(pixels, torch.tensor(labels, device=device).long())
        sampler = torch.utils.data.BatchSampler(order(found), recipe.batch_size, drop_last=False)
        return torch.utils.data.DataLoader(found, sampler=sampler, batch_size=None)

    train_loader = batches(dataset.train_images, dataset.train_labels, torch.utils.data.RandomSampler)
    test_loader = batches(dataset.test_images, dataset.test_labels, torch.utils.data.SequentialSampler)
    rate, num_epochs = recipe.max_learning_rate, recipe.num_epochs
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )

    def schedule(epoch):
        return np.interp(epoch, [0, num_epochs * 2 // 5, num_epochs], [0, rate, 0])

    with tempfile.TemporaryDirectory() as folder:  # where their function saves the weights
        _run(path / "utils.py")["train"](
            network,
            lambda images: (images - shift) / scale,
            train_loader,
            test_loader,
            num_epochs,
            optimizer,
            torch.nn.CrossEntropyLoss(),
            schedule,
            f"{folder}/",
        )
    return {key: tensor.cpu() for key, tensor in network.state_dict().items()}


def _columns(subspace):
    """The basis of a subspace as columns, channel by channel."""
    basis = jax.vmap(subspace.embed)(jnp.eye(subspace.dimension))
    return np.moveaxis(np.asarray(basis), -1, 1).reshape(subspace.dimension, -1).T


def _network(path, name, classifier: models.Normalized):
    import torch

    weights = {key: torch.tensor(value) for key, value in models.to_torch(classifier).items()}
    if name != "mlp":
        network = _published(path, name)
        network.load_state_dict(weights, strict=False)  # which lack the numbers of batches that batch norm has seen
        return network
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    for index in range(len(weights) // 2):
        weight, bias = (weights[f"layers.{index}.{part}"] for part in ("weight", "bias"))
        layers += [torch.nn.Linear(*weight.T.shape), torch.nn.ReLU()]
        layers[-2].load_state_dict({"weight": weight, "bias": bias})
    return torch.nn.Sequential(*layers[:-1])


def _published(path, name):
    """A network of the authors with new weights."""
    file, factory = _NETWORKS[name]
    return _run(path / "model_classes" / file)[factory]()


def _run(path):
    """The names that a file of the authors defines, with stand-ins for packages that it imports but does not use."""
    with mock.patch.dict(sys.modules, {**_STANDINS, "torch.autograd.gradcheck": _GRADCHECK}):
        return runpy.run_path(str(path))
