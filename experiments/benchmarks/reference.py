"""The authors' own loop, from a checkout of their repository, on networks with the weights of ours.

Their code is from 2020. What current releases of its requirements lack, and the loop does not use, is stood in for
while it is imported.
"""

import importlib
import importlib.machinery
import importlib.util
import pathlib
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax import models, subspaces

_NETWORKS = {"lenet": ("mnist/lenet.py", "LeNet"), "resnet18_cifar": ("cifar10/resnet.py", "ResNet18")}
_STANDINS = ("torchvision", "torchvision.transforms", "torch_dct")


def check_reference(path: pathlib.Path) -> None:
    """Raises ValueError if the path is no checkout of the authors' repository, or torch is not installed."""
    if not (path / "utils.py").exists():
        raise ValueError(f"{path} is no checkout of LTS4/hold-me-tight: it has no utils.py")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("the reference needs PyTorch: pip install torch")


class Reference:
    """The authors' subspace DeepFool for a classifier of ours.

    Args:
      path: a checkout of the authors' repository.
      name: architecture of the classifier: `lenet`, `resnet18_cifar`, or `mlp`, which the authors have not published
        and which is made of PyTorch's own layers here.
      classifier: whose weights and normalisation to use.

    Raises:
      ValueError: as `check_reference`.
    """

    def __init__(self, path: pathlib.Path, name: str, classifier: models.Normalized):
        check_reference(path)
        import torch

        self._torch = torch
        # In full float32, as margins are measured here.
        torch.backends.cudnn.allow_tf32 = False
        self._deepfool = _import(path / "utils.py").subspace_deepfool
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = {key: torch.tensor(value) for key, value in models.to_torch(classifier).items()}
        self._network = self._build(path, name, weights).to(self._device).eval()
        mean, std = (
            torch.tensor(np.asarray(value[...])).reshape(1, -1, 1, 1).to(self._device)
            for value in (classifier.mean, classifier.std)
        )
        self._normalize = lambda x: (x - mean) / std

    def seconds(self, images: np.ndarray, subspace: subspaces.Subspace, max_steps: int) -> list[float]:
        """Seconds that each image (height, width, channels) took in a subspace, with up to ten candidates."""
        basis = jax.vmap(subspace.embed)(jnp.eye(subspace.dimension))
        columns = np.asarray(jnp.moveaxis(basis, -1, 1)).reshape(subspace.dimension, -1).T
        projector = self._torch.tensor(np.ascontiguousarray(columns)).to(self._device)
        durations = []
        for image in images:
            # A copy, for PyTorch takes the strides of a moved channel axis for a layout that the network can't flatten.
            x = self._torch.tensor(np.array(np.moveaxis(image, -1, 0)[None], order="C")).to(self._device)
            with self._torch.no_grad():
                num_classes = min(10, self._network(self._normalize(x)).shape[1])
            started = time.perf_counter()
            self._deepfool(
                x,
                self._network,
                self._normalize,
                num_classes=num_classes,
                max_iter=max_steps,
                Sp=projector,
                device=self._device,
            )
            durations.append(time.perf_counter() - started)
        return durations

    def _build(self, path, name, weights):
        if name == "mlp":
            layers = [self._torch.nn.Flatten()]
            for index in range(len(weights) // 2):
                num_out, num_in = weights[f"layers.{index}.weight"].shape
                layers += [self._torch.nn.Linear(num_in, num_out), self._torch.nn.ReLU()]
            network = self._torch.nn.Sequential(*layers[:-1])
            parts = (key.split(".") for key in network.state_dict())
            # Flattening is layer 0, and there is a ReLU behind every linear layer.
            network.load_state_dict(
                {f"{index}.{part}": weights[f"layers.{(int(index) - 1) // 2}.{part}"] for index, part in parts}
            )
            return network
        file, factory = _NETWORKS[name]
        network = getattr(_import(path / "model_classes" / file), factory)()
        network.load_state_dict(weights, strict=False)
        return network


def _import(path):
    """A module of the authors', by its file."""
    gradcheck = importlib.import_module("torch.autograd.gradcheck")
    if not hasattr(gradcheck, "zero_gradients"):  # removed from PyTorch in 2021
        vars(gradcheck)["zero_gradients"] = _zero_gradients
    missing = [name for name in _STANDINS if importlib.util.find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: types.ModuleType(name) for name in missing})
    try:
        return importlib.machinery.SourceFileLoader(f"hold_me_tight_{path.stem}", str(path)).load_module()
    finally:
        for name in missing:
            del sys.modules[name]


def _zero_gradients(x):
    if x.grad is not None:
        x.grad.detach_()
        x.grad.zero_()
