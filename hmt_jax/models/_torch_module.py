"""Any PyTorch module as a classifier."""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape, as_array, check_image_shape
from hmt_jax._extras import require
from hmt_jax.classifiers import LogitsError
from hmt_jax.models._create import check_statistics
from hmt_jax.models._normalization import check_numbers
from hmt_jax.models._torch_skeleton import Skeleton

_LOG = logging.getLogger(__name__)
_DTYPES = ("float32", "float64")

Backend = Literal["auto", "torchax", "callback"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TorchClassifier:
    """A classifier that is a PyTorch module, as `from_torch_module` and `load_torch_exported` return it.

    Attributes:
      tensors: the module's parameters and buffers, by PyTorch's names.
      mean: subtracted from images in [0, 1], if not None.
      std: divides images after that, if not None.
      skeleton: the module without its tensors.
      backend: "torchax", "callback" or "auto".
    """

    tensors: dict[str, jax.Array]
    mean: jax.Array | None
    std: jax.Array | None
    skeleton: Skeleton = dataclasses.field(metadata={"static": True})
    backend: Backend = dataclasses.field(metadata={"static": True})

    def __call__(self, images: jax.Array) -> Any:
        image_shape = check_image_shape(images.shape[1:])
        check_statistics(image_shape, (0,) if self.mean is None else self.mean, (1,) if self.std is None else self.std)
        images = images.astype(self.skeleton.dtype)
        if self.mean is not None:
            images -= jnp.broadcast_to(self.mean, images.shape).astype(images.dtype)
        if self.std is not None:
            images /= jnp.broadcast_to(self.std, images.shape).astype(images.dtype)
        logits = _BACKENDS[self.backend_for(image_shape)]
        return logits(self.skeleton, self.tensors, jnp.moveaxis(images, -1, 1))

    def backend_for(self, image_shape: ImageShape) -> Backend:
        """The backend for images of a shape: "torchax" or "callback".

        For "auto", a gradient is timed in each backend, once for every architecture and shape.

        Args:
          image_shape: (height, width, channels) of the images.
        """
        if self.backend != "auto":
            return self.backend
        height, width, channels = check_image_shape(image_shape)
        return _faster(self.skeleton, (channels, height, width))


def from_torch_module(
    module: Any,
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
    backend: Backend = "auto",
) -> TorchClassifier:
    """A classifier that is any PyTorch module, in evaluation mode.

    The module maps images (N, channels, height, width) to logits (N, L). It is copied, so training it further does not
    change the classifier. Its parameters and buffers are data: modules of the same classes, settings and shapes share
    compiled programs. Anything else that its `forward` reads, such as global variables, is read when it is
    compiled.

    There are two backends, and which is faster depends on the network and the device:
    - "torchax" translates the module's operations to JAX. Derivatives are JAX's: the module's own backward passes, and
      `torch.no_grad` in its forward, have no effect.
    - "callback" leaves the module in PyTorch, on its device. Each step of a measurement calls PyTorch once for the
      whole batch. There are only derivatives with respect to the images, of the first order.
    - "auto" takes the one in which a gradient takes less time, for an image of the shape that the classifier is first
      applied to, on JAX's default device. This is tried when the first program is compiled. It takes "callback" if
      torchax is not installed or can't translate the module. The method `backend_for` of the classifier, and the log of
      `hmt_jax` at level INFO, say which one was taken.

    This needs PyTorch, and torchax for the backend of that name: `pip install 'hmt-jax[torch]'`.

    Args:
      module: a `torch.nn.Module` in evaluation mode, with parameters in float32 or float64. It computes in their type,
        whatever the type of the images.
      mean: subtracted from images in [0, 1]: a number, one per channel, or an image. None if the module expects images
        in [0, 1].
      std: divides images after that, as `mean`.
      backend: "auto", "torchax" or "callback".

    Returns:
      A callable pytree from images (N, height, width, channels) in [0, 1] to logits (N, L). When applied to images, it
      raises a ValueError that names the operation if torchax can't translate one.

    Raises:
      ModuleNotFoundError: if PyTorch is not installed, or torchax with `backend="torchax"`.
      TypeError: if `module` is not a `torch.nn.Module`.
      ValueError: if the module is in training mode, computes in another type, or holds tensors that are not dense; or
        for statistics or a backend that do not fit.
    """
    require("from_torch_module", "torch", "torch")
    import torch

    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"module must be a torch.nn.Module, got {type(module).__name__}: pass the module itself, with its weights "
            "loaded by module.load_state_dict(...)"
        )
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "torchax":
        require("backend='torchax'", "torch", "torchax")
    module = getattr(module, "_orig_mod", module)  # within torch.compile
    for name, part in module.named_modules():
        if part.training:
            raise ValueError(f"module's {name or type(part).__name__} is in training mode: call module.eval() first")
    _check_tensors(module)
    skeleton = Skeleton(module)
    mean, std = (
        None if value is None else jnp.atleast_1d(as_array(argument, value))
        for argument, value in (("mean", mean), ("std", std))
    )
    _check_shapes(mean, std)
    return TorchClassifier(skeleton.take_arrays(), mean, std, skeleton, backend)


def _check_tensors(module):
    import torch

    for name, each in [*module.named_parameters(), *module.named_buffers()]:
        if each.layout != torch.strided or each.is_quantized or each.is_meta:
            kind = "quantized" if each.is_quantized else "on the meta device" if each.is_meta else each.layout
            raise ValueError(f"module's {name} must be a dense tensor with values, but it is {kind}")
    dtypes = {str(each.dtype).removeprefix("torch.") for each in module.parameters() if each.dtype.is_floating_point}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        raise ValueError(
            f"module's parameters must be all float32 or all float64, got {' and '.join(sorted(dtypes))}: call "
            "module.float()"
        )
    if "float64" in dtypes and not jax.config.values["jax_enable_x64"]:
        raise ValueError(
            "module computes in float64, which JAX has off: call jax.config.update('jax_enable_x64', True) at the "
            "start, or module.float()"
        )


def _check_shapes(mean, std):
    check_numbers((0,) if mean is None else mean, (1,) if std is None else std)
    for argument, value in (("mean", mean), ("std", std)):
        if value is not None and value.ndim not in (1, 3):
            raise ValueError(
                f"{argument} must have one number for each channel, or be an image (height, width, channels), got "
                f"shape {value.shape}"
            )


def _by_torchax(skeleton: Skeleton, tensors: Mapping[str, jax.Array], images: jax.Array) -> Any:
    return skeleton.by_torchax(tensors, images)


def _by_callback(skeleton: Skeleton, tensors: Mapping[str, jax.Array], images: jax.Array) -> Any:
    import torch

    logits, num_bytes = skeleton.try_out(images.shape[1:])
    if not isinstance(logits, torch.Tensor):
        return logits  # the caller says what is wrong with it
    if logits.ndim != 2 or len(logits) != 1:
        return jnp.zeros((len(images), *logits.shape) if not logits.ndim else logits.shape)
    return _called(skeleton, num_bytes, logits.shape[1], dict(tensors), images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _called(skeleton, num_bytes, num_classes, tensors, images):
    """Logits (N, num_classes) of images (N, channels, height, width), by PyTorch on the host."""
    shape = (len(images), num_classes)
    return _on_host(functools.partial(skeleton.logits, num_bytes), shape, tensors, images)


def _called_forward(skeleton, num_bytes, num_classes, tensors, images):
    if any(each.perturbed for each in tensors.values()):
        raise LogitsError(
            "the parameters of a PyTorch module have no derivatives with backend='callback': train it in PyTorch, or "
            "make the classifier with backend='torchax'"
        )
    values = {name: each.value for name, each in tensors.items()}
    return _called(skeleton, num_bytes, num_classes, values, images.value), (values, images.value)


def _called_backward(skeleton, num_bytes, num_classes, kept, cotangents):
    tensors, images = kept
    if isinstance(cotangents, jax.custom_derivatives.SymbolicZero):
        return None, jnp.zeros_like(images)
    pull_back = functools.partial(skeleton.pull_back, num_bytes)
    return None, _on_host(pull_back, images.shape, tensors, images, cotangents)


def _on_host(function, shape, tensors, images, *others):
    """The array that a function returns on the host, of the given shape and of the type of the images."""
    result = jax.ShapeDtypeStruct(shape, images.dtype)

    def write(_, out, *buffers):
        np.asarray(out)[...] = function(*buffers)

    # On CPUs, `jax.pure_callback` would copy all weights in every call, by threads that may all wait for callbacks.
    return jax.lax.platform_dependent(
        tensors,
        images,
        *others,
        cpu=buffer_callback(write, result, vmap_method="expand_dims"),
        default=lambda *arguments: jax.pure_callback(function, result, *arguments, vmap_method="expand_dims"),
    )


_called.defvjp(_called_forward, _called_backward, symbolic_zeros=True)

_BACKENDS = {"torchax": _by_torchax, "callback": _by_callback}


@functools.cache
def _faster(skeleton: Skeleton, image_shape: tuple[int, ...]) -> Backend:
    """The backend in which the gradient of one logit takes less time for an image (channels, height, width)."""
    if importlib.util.find_spec("torchax") is None:
        _LOG.info("a PyTorch module runs by backend='callback', because torchax is not installed")
        return "callback"
    # In a thread of its own, because this may be within a trace, where nothing can be computed.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            translated = thread.submit(_seconds, "torchax", skeleton, image_shape).result()
        except Exception as error:  # of torchax or JAX; if the images are at fault, PyTorch will say so, too
            _LOG.info("a PyTorch module runs by backend='callback', because torchax fails: %s", error)
            return "callback"
        called = thread.submit(_seconds, "callback", skeleton, image_shape).result()
    backend: Backend = "torchax" if translated <= called else "callback"
    _LOG.info(
        "a PyTorch module runs by backend='%s': a gradient takes %.3g s by torchax and %.3g s by callback",
        backend,
        translated,
        called,
    )
    return backend


def _seconds(backend, skeleton, image_shape) -> float:
    """The seconds of the fastest of a few gradients, after a first one that compiles."""
    with jax.enable_x64(skeleton.dtype == "float64"):
        tensors = {name: jnp.asarray(each.contiguous().cpu().numpy()) for name, each in skeleton.stand_ins().items()}
        images = jnp.full((1, *image_shape), 0.5, skeleton.dtype)

        @jax.jit
        def gradient(tensors, images):
            return jax.grad(lambda images: _BACKENDS[backend](skeleton, tensors, images)[0, 0])(images)

        durations: list[float] = []
        while len(durations) < 4 and sum(durations[1:]) < 1:
            started = time.perf_counter()
            jax.block_until_ready(gradient(tensors, images))
            durations.append(time.perf_counter() - started)
        return min(durations[1:])
