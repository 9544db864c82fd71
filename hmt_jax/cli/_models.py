"""Models that the command line names: architectures with weights, files, and functions in the user's own code."""

import dataclasses
import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import hmt_jax
from hmt_jax._paths import expand, reason, shown

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, as the command line describes it.

    Attributes:
      text: a name of `hmt_jax.models.names()`, a file, or `package.module:function` or `file.py:function`.
      weights: a file of weights, for a name.
      weights_key: the place of the weights in that file, as the argument `weights` of `hmt_jax.models.from_torch`.
      mean, std: the normalisation, for weights and PyTorch modules.
      backend: for PyTorch modules, as `hmt_jax.from_torch_module` takes it.
    """

    text: str
    weights: str | None = None
    weights_key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    backend: Literal["auto", "torchax", "callback"] = "auto"

    def load(self, image_shape: tuple[int, int, int]) -> Any:
        """The classifier.

        Raises:
          ValueError: if there is no such model, or it can't be loaded.
        """
        import jax

        from hmt_jax.classifiers import LogitsError, as_pytree, shape_of_logits

        self._check_normalization()
        made = self._loaded(image_shape)
        classifier = as_pytree(made)
        try:
            shape_of_logits(classifier, jax.ShapeDtypeStruct((1, *image_shape), "float32"))
        except LogitsError:
            raise
        except Exception as error:
            raise ValueError(
                f"the model {shown(self.text)} fails on images of shape {image_shape} ({type(error).__name__}: "
                f"{reason(error).rstrip('.')}): --debug shows where"
            ) from error
        return made

    def _check_normalization(self) -> None:
        if (self.mean is None) != (self.std is None) and self.weights is None:  # which may hold the other one
            raise ValueError("--mean and --std go together: pass both, or neither")
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if any(abs(value) > 1 for value in values or ()):
                divided = " ".join(f"{value / 255:.3g}" for value in values or ())
                raise ValueError(
                    f"{option} is for pixels in [0, 1], and has {max(values or (), key=abs):g}: divide statistics of "
                    f"pixels up to 255 by 255, {option} {divided}"
                )

    def _loaded(self, image_shape) -> Any:
        if self.text in hmt_jax.models.names():
            return self._of_weights(image_shape)
        for option, value in (("--weights", self.weights), ("--weights-key", self.weights_key)):
            if value is not None:
                raise ValueError(f"{option} is for the networks of hmt models, and {self.text!r} is none of them")
        place, is_function, name = self.text.rpartition(":")
        if is_function and place and not os.path.exists(expand("--model", self.text)):
            return self._of_function(place, name)
        path = expand("--model", self.text)
        if os.path.isdir(path):
            raise ValueError(f"{shown(path)} is a folder: name the file of the model in it")
        if not os.path.exists(path):
            raise ValueError(
                f"there is no model {self.text!r}: name a network of hmt models with --weights FILE, a file, or "
                "file.py:function"
            )
        return self._of_file(path)

    def _of_weights(self, image_shape) -> Any:
        if self.weights is None:
            raise ValueError(f"--model {self.text} needs its weights: pass --weights FILE")
        if not os.path.exists(weights := expand("--weights", self.weights)):
            raise ValueError(f"there is no file of weights {shown(weights)}")
        return hmt_jax.models.from_torch(
            self.text, weights, image_shape=image_shape, mean=self.mean, std=self.std, weights=self.weights_key
        )

    def _of_file(self, path: str) -> Any:
        if path.endswith(".pt2"):
            return hmt_jax.models.load_torch_exported(path, mean=self.mean, std=self.std, backend=self.backend)
        if path.endswith(".py"):
            raise ValueError(
                f"{shown(path)} is a program: name its function that makes the model, {self.text}:FUNCTION"
            )
        loaded = hmt_jax.load_exported(path) if _is_exported(path) else hmt_jax.models.load(path)[0]
        self._refuse_normalization(f"{shown(path)} normalises its images itself")
        return loaded

    def _of_function(self, place: str, name: str) -> Any:
        made = _imported(place, name)
        if not callable(made):
            raise ValueError(f"{self.text} is not a function, but {type(made).__name__}")
        if inspect.isroutine(made) or inspect.isclass(made):  # what else can be called is the model itself
            made = _executed(made, f"{self.text} fails when it is called without arguments")
        if _is_torch_module(made):
            if self.mean is None:
                _LOG.info("no --mean and --std: the PyTorch module gets pixels in [0, 1] as they are")
            return hmt_jax.from_torch_module(made, mean=self.mean, std=self.std, backend=self.backend)
        if not callable(made):
            raise ValueError(
                f"{self.text} must return a classifier or a PyTorch module when it is called without arguments, got "
                f"{type(made).__name__}"
            )
        self._refuse_normalization(f"{self.text} returns a JAX classifier, which normalises its images itself")
        return made

    def _refuse_normalization(self, why: str) -> None:
        if self.mean is not None or self.std is not None:
            raise ValueError(f"--mean and --std are for weights and PyTorch modules, and {why}: leave them out")


def _is_exported(path: str) -> bool:
    """Whether `hmt_jax.save_exported` wrote a file of safetensors."""
    from safetensors import SafetensorError, safe_open

    from hmt_jax.models._files import EXPORTED_HEADER

    try:
        with safe_open(path, framework="numpy") as tensors:
            return EXPORTED_HEADER in (tensors.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _imported(place: str, name: str) -> Any:
    """An attribute of the module `package.module`, or of the module in a file."""
    path = expand("--model", place)
    if place.endswith(".py"):
        if not os.path.exists(path):
            raise ValueError(f"there is no file {shown(path)}")
        spec = importlib.util.spec_from_file_location("hmt_model", path)
        assert spec is not None  # its name ends in .py
        loader: Any = spec.loader
        module = importlib.util.module_from_spec(spec)
        # As Python does for a script, which finds modules in its own folder, and whose classes find their module.
        sys.modules["hmt_model"] = module
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        _executed(lambda: loader.exec_module(module), f"{place} can't be imported")
    else:
        sys.path.insert(0, os.getcwd())
        module = _executed(lambda: importlib.import_module(place), f"{place} can't be imported")
    if not hasattr(module, name):
        functions = ", ".join(key for key, value in vars(module).items() if callable(value) and key[0] != "_") or "none"
        raise ValueError(f"{place} has no function {name!r}; it has {functions}")
    return getattr(module, name)


def _executed(function: Callable[[], Any], what: str) -> Any:
    """The result of the user's code. Its errors become one sentence."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        is_torch = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        remedy = "pip install 'hmt-jax[torch]', or '.[torch]' in a checkout" if is_torch else "--debug shows where"
        raise ValueError(f"{what} ({type(error).__name__}: {reason(error)}); {remedy}") from error


def _is_torch_module(value: Any) -> bool:
    return any(base.__module__.startswith("torch.nn.") for base in type(value).__mro__)
