"""PyTorch modules without their tensors, which JAX holds: how they are compared, and how they run.

Two modules of one architecture have equal skeletons, so that they share compiled programs.
"""

import copy
import io
import pickle
import threading
import traceback
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hmt_jax import _paths
from hmt_jax.classifiers import LogitsError

# Bytes that one batch in PyTorch may keep for its backward pass; larger batches are split.
_MOST_BYTES = 2**30
# torchax has one environment in a process, which is not made for several threads.
_TORCHAX = threading.RLock()


class Outcome(NamedTuple):
    """The result of PyTorch for a single image.

    Attributes:
      logits: the module's output; usually a tensor (1, L).
      num_bytes: the memory that it keeps for the backward pass.
    """

    logits: Any
    num_bytes: int


class Skeleton:
    """A module in evaluation mode whose tensors are replaced by their shapes.

    Skeletons are equal if the classes, functions, settings and shapes in their modules are the same. Functions and
    classes count as the same only if they are one object. A module that can't be compared equals only itself.

    Args:
      module: a PyTorch module; it is not changed.

    Attributes:
      dtype: the type of its parameters, which it computes in.
    """

    def __init__(self, module: Any):
        import torch

        parts = dict(module.named_modules())
        # Tensors that are plain attributes are data, too: in the copy they become buffers.
        attributes = {
            (part_name, name): value
            for part_name, part in parts.items()
            for name, value in vars(part).items()
            if isinstance(value, torch.Tensor)
        }
        self._tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._tensors |= {".".join(filter(None, key)): value for key, value in attributes.items()}
        # Shapes take the place of tensors while the module is copied, so that no tensor is copied here.
        shapes = {
            id(each): torch.nn.Parameter(shape, requires_grad=False) if isinstance(each, torch.nn.Parameter) else shape
            for each in self._tensors.values()
            for shape in [torch.empty_like(each, device="meta", requires_grad=False)]
        }
        try:
            self._module = copy.deepcopy(module, dict(shapes))
        except Exception as error:  # whatever the objects in the module raise
            raise ValueError(
                f"module can't be copied ({_paths.reason(error)}): remove from it what its logits do not need"
            ) from error
        for (part_name, name), value in attributes.items():
            part = self._module.get_submodule(part_name)
            delattr(part, name)
            part.register_buffer(name, shapes[id(value)], persistent=False)
        floating = {each.dtype for each in module.parameters() if each.dtype.is_floating_point}
        self.dtype = str(next(iter(floating), torch.float32)).removeprefix("torch.")
        self._device = next((each.device for each in self._tensors.values()), torch.device("cpu"))
        # The objects are kept, because other objects may get the same ids once these are gone.
        fingerprint, self._objects = _fingerprint(self._module)
        self._key = (fingerprint, tuple(map(id, self._objects)), str(self._device))
        self._lock = threading.RLock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def take_arrays(self) -> dict[str, jax.Array]:
        """Copies of the module's tensors, by name; the skeleton then lets go of them."""
        tensors, self._tensors = self._tensors, {}
        # Copied twice, because JAX may keep the memory that it is given, and PyTorch may go on training.
        return {name: jax.device_put(np.array(each.detach().cpu().numpy())) for name, each in tensors.items()}

    def stand_ins(self) -> dict[str, Any]:
        """Tensors of the right shapes and of moderate values, for runs whose results do not matter."""
        import torch

        def stand_in(each):
            is_weight = each.dtype.is_floating_point and each.ndim > 1
            value = each.shape[0] / max(each.numel(), 1) if is_weight else float(each.dtype.is_floating_point)
            return torch.tensor(value, dtype=each.dtype, device=self._device).expand(each.shape)

        everything = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        return {name: stand_in(each) for name, each in everything.items()}

    def try_out(self, image_shape: tuple[int, ...]) -> Outcome:
        """The result of PyTorch for one image (channels, height, width), with stand-ins for the parameters.

        Raises:
          ValueError: with PyTorch's reason, if the module can't be applied to such an image.
          LogitsError: if the module draws random numbers.
        """
        import torch

        tensors = self.stand_ins()
        image = torch.full((1, *image_shape), 0.5, dtype=getattr(torch, self.dtype), device=self._device)
        own = {each.untyped_storage().data_ptr() for each in (image, *tensors.values())}
        kept: dict[int, int] = {}

        def count(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        state = self._random_state()
        hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
        try:
            with torch.enable_grad(), hooks:
                logits = self._call(tensors, image.requires_grad_())
        except Exception as error:  # PyTorch's own errors are RuntimeErrors, but a module may raise others
            raise ValueError(_paths.reason(error)) from error
        if not torch.equal(state, self._random_state()):
            raise LogitsError(_RANDOM)
        if changed := [name for name, each in tensors.items() if each._version]:
            raise LogitsError(
                f"the classifier changes its {changed[0]} when it is called, in evaluation mode: let the module's "
                "forward leave its buffers as they are"
            )
        return Outcome(logits, sum(kept.values()))

    def by_torchax(self, tensors: Mapping[str, jax.Array], images: jax.Array) -> Any:
        """The output for images (N, channels, height, width), as operations of JAX.

        Raises:
          ValueError: if the module can't be applied to such images.
          LogitsError: if torchax can't translate an operation, or the module draws random numbers.
        """
        import torchax
        from torch.func import functional_call

        with _TORCHAX, self._lock, warnings.catch_warnings():
            # torchax asks for indices in int64, which JAX makes int32.
            warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
            environment = torchax.default_env()
            key = jax.random.key(0)
            with environment.override_property(prng=key):
                try:
                    # torchax relies on both, whatever the user has set.
                    with environment, jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                        arguments = environment.j2t_iso((dict(tensors), images))
                        outputs = functional_call(self._module, arguments[0], arguments[1:])
                        outputs = environment.t2j_iso(outputs)
                except Exception as error:  # of torchax, JAX or PyTorch
                    self.try_out(images.shape[1:])  # which raises if the images are at fault
                    raise LogitsError(
                        f"classifier uses {_operation_at(error)}, which torchax {torchax.__version__} can't translate "
                        f"to JAX ({_paths.reason(error)}): make it with backend='callback', which leaves it in PyTorch"
                    ) from error
                if environment.prng_key is not key:
                    raise LogitsError(_RANDOM)
        return outputs

    def logits(self, num_bytes: int, tensors: Mapping[str, Any], images: Any) -> np.ndarray:
        """Logits (..., N, L) of images (..., N, channels, height, width), by PyTorch, on the host."""
        import torch

        given, images = self._as_torch(tensors), np.asarray(images)
        with torch.no_grad():
            batches = [self._call(given, batch).cpu() for batch in self._batches(images, num_bytes)]
        logits = torch.cat(batches).numpy()
        return logits.reshape(*images.shape[:-3], *logits.shape[1:])

    def pull_back(self, num_bytes: int, tensors: Mapping[str, Any], images: Any, cotangents: Any) -> np.ndarray:
        """Gradients (..., N, channels, height, width) of the logits, by one forward pass for all cotangents.

        Args:
          num_bytes: the memory that one image keeps for the backward pass.
          tensors: the module's tensors, by name.
          images: (..., N, channels, height, width).
          cotangents: (..., N, L). Leading axes of length 1, of images and of cotangents, are broadcast.
        """
        import torch

        given, images, cotangents = self._as_torch(tensors), np.asarray(images), np.asarray(cotangents)
        before, after = images.shape[:-4], cotangents.shape[:-2]
        axes = np.broadcast_shapes(before, after)
        # Axes along which there are several cotangents for one image come first.
        repeated = [axis for axis, length in enumerate(before) if length == 1 < axes[axis]]
        shared = [axis for axis in range(len(axes)) if axis not in repeated]
        order = [*repeated, *shared]
        rows = np.broadcast_to(cotangents, (*axes, *cotangents.shape[-2:]))
        rows = np.moveaxis(rows, order, range(len(order)))
        num_images = int(np.prod(before)) * images.shape[-4]
        given_rows = torch.tensor(rows.reshape(-1, num_images, rows.shape[-1]), device=self._device)
        gradients = []
        with torch.enable_grad():
            first = 0
            for batch in self._batches(images, num_bytes):
                logits = self._call(given, batch.requires_grad_())
                own = given_rows[:, first : first + len(batch)]
                gradients.append(torch.stack([_gradient(logits, batch, row) for row in own]).cpu())
                first += len(batch)
        flat = torch.cat(gradients, dim=1).numpy()
        sorted_axes = [axes[axis] for axis in order]
        return np.moveaxis(flat.reshape(*sorted_axes, *images.shape[-4:]), range(len(order)), order)

    def _call(self, tensors, images):
        from torch.func import functional_call

        with self._lock:  # because the tensors are put into the module during the call
            # A copy, because PyTorch lets no operation write to a tensor that gradients are for.
            return functional_call(self._module, tensors, (images.clone(),))

    def _batches(self, images, num_bytes) -> Iterator[Any]:
        import torch

        flat = np.asarray(images).reshape(-1, *images.shape[-3:])
        step = max(_MOST_BYTES // max(num_bytes, 1), 1)
        for first in range(0, len(flat), step):
            yield torch.tensor(flat[first : first + step], device=self._device)

    def _as_torch(self, tensors):
        import torch

        shapes = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        return {
            name: torch.from_dlpack(each).reshape(shapes[name].shape).to(self._device, shapes[name].dtype)
            for name, each in tensors.items()
        }

    def _random_state(self):
        import torch

        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()


_RANDOM = (
    "the classifier draws random numbers in evaluation mode: leave the random operation out of the module's forward, "
    "or give it training=self.training"
)


def _gradient(logits, images, cotangent):
    import torch

    # Zeros if the logits do not depend on the images.
    if not logits.requires_grad:
        return torch.zeros_like(images)
    return torch.autograd.grad(logits, images, cotangent, retain_graph=True, materialize_grads=True)[0]


def _fingerprint(module) -> tuple[Any, list[Any]]:
    """A value and a list of objects; modules with equal values and the same objects behave alike, given their tensors.

    If a module can't be compared, its value is unique.
    """
    import torch

    objects: list[Any] = []
    by_name = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch._ops.OpOverload)

    class Pickler(pickle.Pickler):
        """Pickles classes and functions as their places in `objects`, and tensors as their shapes."""

        def persistent_id(self, each: Any) -> Any:
            if isinstance(each, torch.Tensor):
                if each.device.type != "meta":
                    raise pickle.PicklingError("its values are not data")
                return (str(each.dtype), tuple(each.shape))
            if isinstance(each, by_name):
                objects.append(each)
                return len(objects)
            return None

    file = io.BytesIO()
    try:
        Pickler(file).dump(module)
    except Exception:  # objects that can't be pickled, such as open files, may raise anything
        return object(), []
    # What classes hold now, because their methods may be replaced later.
    bases = {base: None for each in objects if isinstance(each, type) for base in each.__mro__}
    return file.getvalue(), [*objects, *(value for base in bases for value in vars(base).values())]


def _operation_at(error: BaseException) -> str:
    """The name of the operation in which torchax failed."""
    from torchax.tensor import Environment

    dispatch = Environment.dispatch.__code__
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is dispatch]
    if not frames:
        return "an operation"
    function = frames[-1].f_locals["func"]
    return function.name() if hasattr(function, "name") else getattr(function, "__qualname__", str(function))
