"""The devices that things run on, and errors that mean that their memory is full."""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hmt_jax._checks import text_of

# XLA reports lack of memory under several codes: RESOURCE_EXHAUSTED on accelerators; on CPU also INTERNAL, if the
# computation was started before its arguments were computed. Libraries of vendors and of C++ have their own words.
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|out[ _]?of[ _]?memory|failed to allocate|alloc_failed|bad_alloc", re.IGNORECASE
)

_FOR_ALL_PLATFORMS: contextvars.ContextVar[bool] = contextvars.ContextVar("_FOR_ALL_PLATFORMS", default=False)


def as_list(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    """The given devices, or all local devices if None is given.

    Raises:
      ValueError: for no devices at all, or the same one twice.
      TypeError: for anything but devices.
    """
    chosen: Any = jax.local_devices() if devices is None else devices
    if not isinstance(chosen, Iterable) or not all(isinstance(device, jax.Device) for device in chosen):
        raise TypeError(
            f"devices must be a list of devices, such as jax.local_devices(), or None, got {text_of(devices)}"
        )
    devices = list(chosen)
    if len(set(devices)) < len(devices):
        raise ValueError(f"devices must be different, got {devices}: pass each one once")
    if not devices:
        raise ValueError("devices is empty: pass at least one, or None for all local devices")
    return devices


def mesh(devices: Sequence[jax.Device] | None, axis: str) -> jax.sharding.Mesh:
    """A one-dimensional mesh of the devices, along an axis of the given name; those of a process follow each other."""
    devices = sorted(as_list(devices), key=lambda device: device.process_index)
    return jax.sharding.Mesh(np.array(devices), (axis,), axis_types=(jax.sharding.AxisType.Auto,))


def sharing(batch_size: int) -> list[jax.Device]:
    """All devices of all processes; of a single process, as many as can share batches of this size evenly."""
    if jax.process_count() > 1:  # every process has to have its part
        return jax.devices()
    devices = jax.local_devices()
    return devices[: max(number for number in range(1, len(devices) + 1) if batch_size % number == 0)]


def by_platform(*arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """The result of `cpu` on CPU, and of `default` elsewhere, as `jax.lax.platform_dependent` returns it.

    If there are no other devices than CPUs, only `cpu` is traced, except `for_all_platforms`.
    """
    if _FOR_ALL_PLATFORMS.get():
        return _chosen_first(cpu, default)(*arguments)
    if jax.default_backend() == "cpu":
        return cpu(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


@contextlib.contextmanager
def for_all_platforms() -> Iterator[None]:
    """A context in which what is traced may run on other platforms than those of this machine."""
    token = _FOR_ALL_PLATFORMS.set(True)
    try:
        yield
    finally:
        _FOR_ALL_PLATFORMS.reset(token)


def _chosen_first(cpu, default):
    """The function that `by_platform` computes, which chooses before it differentiates.

    The derivative of a choice would keep what either branch keeps, for both of them.
    """

    @jax.custom_vjp
    def function(*arguments):
        return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)

    def forward(*arguments):
        values = [argument.value for argument in arguments]
        varied = {i: values[i] for i, argument in enumerate(arguments) if argument.perturbed}
        fixed = {i: value for i, value in enumerate(values) if i not in varied}
        return function(*values), (varied, fixed)

    def backward(residuals, gradient):
        num_arguments = len(residuals[0]) + len(residuals[1])

        def pull_back(branch):
            def gradients(varied, fixed, gradient):
                def by_varied(varied):
                    arguments = fixed | varied
                    return branch(*(arguments[i] for i in range(num_arguments)))

                return jax.vjp(by_varied, varied)[1](gradient)[0]

            return gradients

        gradients = jax.lax.platform_dependent(*residuals, gradient, cpu=pull_back(cpu), default=pull_back(default))
        return tuple(gradients.get(i) for i in range(num_arguments))

    function.defvjp(forward, backward, symbolic_zeros=True)
    return function


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine ran out of memory."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return _OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)
