"""Iterative solvers run over many items in a fixed number of lanes, each of which is refilled as soon as it is free.

A loop that is batched by `jax.vmap` runs until its slowest item is done, while all other lanes wait. Here B lanes
advance together by one compiled step. A lane whose item is done writes the result and starts the next item in the same
step, so nothing is copied to the host. Items are dealt out to the devices of a mesh. Each device works through its own
queue and never waits for the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hmt_jax import _devices, _programs
from hmt_jax._checks import check_callback, integer
from hmt_jax._misc import warn

__all__ = ["Method", "Work", "evaluate", "solve"]

_AXIS = "lanes"
# Steps after which a loop on an accelerator returns to the host, for progress and errors: rare enough to cost nothing.
_STEPS_PER_CALL = 32
# XLA's newer way to compile fusions on CPU takes 1.6 times as long, and its programs are no faster. Later releases of
# JAX have only the newer way.
_OPTIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else None


class Method(Protocol):
    """An iterative solver of one item: a hashable value, such as a frozen dataclass. All its methods are traced.

    `data` is a pytree of arrays that all items share, and `item` is a scalar integer. `start` returns the first state,
    `step` the next state, with the same shapes and dtypes, `done` a bool, and `result` the item's result, a pytree.
    `start` is computed for all lanes in every step, so it should be cheap.

    >>> @dataclasses.dataclass(frozen=True)
    ... class CountDown:
    ...     def start(self, data, item):
    ...         return data[item]
    ...     def step(self, data, item, state):
    ...         return state - 1
    ...     def done(self, state):
    ...         return state <= 0
    ...     def result(self, state):
    ...         return state
    >>> method: Method = CountDown()
    >>> solve(method, jnp.array([3.0, 1.5]), [0, 1], num_lanes=2)[0].tolist()
    [0.0, -0.5]
    """

    def start(self, data: Any, item: jax.Array) -> Any: ...

    def step(self, data: Any, item: jax.Array, state: Any) -> Any: ...

    def done(self, state: Any) -> jax.Array: ...

    def result(self, state: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Work:
    """The cost of a run. A lane-step is one lane in one compiled step, whether the lane is busy or idle.

    Attributes:
      num_lanes: lanes on each device.
      num_lane_steps: lane-steps on all devices.
      num_busy_lane_steps: lane-steps of busy lanes.

    >>> Work(num_lanes=4, num_lane_steps=40, num_busy_lane_steps=30).utilization
    0.75
    """

    num_lanes: int
    num_lane_steps: int
    num_busy_lane_steps: int

    @property
    def utilization(self) -> float:
        """The share of lane-steps in which the lane was busy."""
        return self.num_busy_lane_steps / max(self.num_lane_steps, 1)

    def __add__(self, later: "Work") -> "Work":
        """The work of both runs together, with the number of lanes of the later run."""
        return Work(
            later.num_lanes,
            self.num_lane_steps + later.num_lane_steps,
            self.num_busy_lane_steps + later.num_busy_lane_steps,
        )


class _Lanes(NamedTuple):
    """The lanes of one device. A slot is a position in the device's queue."""

    slots: jax.Array  # (B,) the slot of each lane; the length of the queue if the lane is idle
    states: Any  # leaves (B, ...)
    next_slot: jax.Array  # (1,)
    results: Any  # leaves (Q, ...)
    is_solved: jax.Array  # (Q,)
    num_solved: jax.Array  # (1,)
    num_steps: jax.Array  # (1,) compiled steps of the last call
    num_busy: jax.Array  # (1,) busy lane-steps of the last call


def solve(
    method: Method,
    data: Any,
    items: Sequence[int] | np.ndarray,
    *,
    num_lanes: int,
    devices: Sequence[jax.Device] | None = None,
    steps_per_call: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Work]:
    """The results of a method for every item, in the order of `items`, and the work done.

    Each item starts from `state = start(data, item)` and repeats `state = step(data, item, state)` until `done(state)`;
    its result is then `result(state)`. Except for the rounding of batched products, results do not depend on the number
    of lanes, the number of devices or the order of the items.

    If a device runs out of memory, the number of lanes is halved, with a warning, and the unsolved items are solved
    with fewer lanes.

    Args:
      method: the solver, as `Method` describes; equal methods share compiled code.
      data: pytree of arrays that all items share, copied to every device.
      items: whole numbers that `start` and `step` understand. Negative items are skipped, and their results are zeros:
        lists of different lengths that are padded with them share compiled code.
      num_lanes: lanes on each device.
      devices: where to run; all local devices if not given.
      steps_per_call: steps in one call of compiled code. With 1, the loop runs on the host; with more, on the device.
        If not given, it is 1 on CPU, where XLA compiles convolutions badly inside loops, and 32 elsewhere.
      progress: called with the number of solved items and the number of all items, after every call of compiled code.

    Returns:
      The results, a pytree as `result` returns it with NumPy leaves of shape (len(items), ...), and the `Work`.

    Raises:
      ValueError: if no item is at or above zero, if there is no device, or if num_lanes or steps_per_call is below 1.

    Warns:
      UserWarning: if memory runs out and the number of lanes is halved.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Halve:
    ...     def start(self, data, item):
    ...         return data[item], 0
    ...     def step(self, data, item, state):
    ...         return state[0] / 2, state[1] + 1
    ...     def done(self, state):
    ...         return state[0] < 1
    ...     def result(self, state):
    ...         return state[1]
    >>> halvings, work = solve(Halve(), jnp.array([8.0, 0.5, 3.0]), [0, 1, 2], num_lanes=2)
    >>> halvings.tolist()
    [4, 0, 2]
    """
    check_callback("progress", progress, "the numbers of items solved and of all items")
    items, devices = _as_items(items), _devices.as_list(devices)
    if steps_per_call is None:
        steps_per_call = _steps_per_call(devices)
    integer("num_lanes", num_lanes, at_least=1)
    integer("steps_per_call", steps_per_call, at_least=1)
    mesh = _devices.mesh(devices, _AXIS)
    data = _spread(data, mesh, PartitionSpec())
    solved = _Solved(items)
    num_items = solved.num_missing
    work = Work(num_lanes, 0, 0)
    while solved.num_missing:
        positions = _deal(solved.missing(), -(-len(items) // len(devices)), len(devices))
        queue = _spread(np.where(positions >= 0, items[positions], -1), mesh, PartitionSpec(_AXIS))
        lanes = None
        try:
            lanes = _spread(_idle(method, mesh, num_lanes, data, len(positions)), mesh, PartitionSpec(_AXIS))
            num_solved = 0
            while num_solved < solved.num_missing:
                advanced = _advance(method, mesh, steps_per_call, data, queue, lanes)
                # Waits, so that a failed call raises here. NumPy sums, because JAX would compile a program for each.
                num_solved = _sum(advanced.num_solved)
                lanes = advanced
                work += Work(num_lanes, num_lanes * _sum(lanes.num_steps), _sum(lanes.num_busy))
                if progress is not None:
                    progress(num_items - solved.num_missing + num_solved, num_items)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            num_lanes = _fewer(num_lanes, error)
        if lanes is not None:
            solved.store(positions[np.asarray(lanes.is_solved)], lanes.results, np.asarray(lanes.is_solved))
    return solved.results, work


def evaluate(
    function: Callable[[Any, jax.Array], Any],
    data: Any,
    items: Sequence[int] | np.ndarray,
    *,
    num_lanes: int,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Any, Work]:
    """The values of `function(data, item)` for every item, in the order of `items`, and the work done.

    This is `solve` for work that takes one step.

    Args:
      function: a hashable function of (data, item); equal functions share compiled code.
      data, items, num_lanes, devices: as in `solve`.

    Returns:
      The values, a pytree with NumPy leaves of shape (len(items), ...), and the `Work`.

    Raises:
      ValueError: if no item is at or above zero, if there is no device, or if num_lanes is below 1.

    Warns:
      UserWarning: if memory runs out and the number of lanes is halved.

    >>> squares, work = evaluate(lambda data, item: data[item] ** 2, jnp.array([1.0, 2.0, 3.0]), [2, 0], num_lanes=2)
    >>> squares.tolist(), work.num_busy_lane_steps
    ([9.0, 1.0], 2)
    """
    items, devices = _as_items(items), _devices.as_list(devices)
    integer("num_lanes", num_lanes, at_least=1)
    mesh = _devices.mesh(devices, _AXIS)
    data = _spread(data, mesh, PartitionSpec())
    solved = _Solved(items)
    work = Work(num_lanes, 0, 0)
    while solved.num_missing:
        batch_size = num_lanes * len(devices)
        waiting = solved.missing()
        under_way: list[Any] = []
        try:
            # The next batch is started before the results of the last one are fetched: the device is never idle.
            for first in range(0, len(waiting) + batch_size, batch_size):
                if len(positions := waiting[first : first + batch_size]):
                    # The last batch is filled with copies of its own items, so that all batches share a program.
                    batch = _spread(np.resize(items[positions], batch_size), mesh, PartitionSpec(_AXIS))
                    under_way.append((positions, _evaluate(function, mesh, data, batch)))
                if len(under_way) > 1 or not len(positions):
                    done, results = under_way.pop(0)
                    solved.store(done, jax.device_get(results), np.arange(batch_size) < len(done))
                    work += Work(num_lanes, batch_size, len(done))
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            num_lanes = _fewer(num_lanes, error)
    return solved.results, work


def lower_evaluate(
    function: Callable[[Any, jax.Array], Any], data: Any, *, num_lanes: int, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """The program of `evaluate`, traced but not compiled. Only the shapes and dtypes of the data are used."""
    mesh = _devices.mesh(devices, _AXIS)
    batch = _abstract(np.zeros(num_lanes * len(devices), np.int32), mesh, PartitionSpec(_AXIS))
    return _evaluate.lower(function, mesh, _abstract(data, mesh, PartitionSpec()), batch)


def lower_solve(
    method: Method, data: Any, num_items: int, *, num_lanes: int, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """The program of `solve` for `num_items` items, traced but not compiled. See `lower_evaluate`."""
    mesh = _devices.mesh(devices, _AXIS)
    data = _abstract(data, mesh, PartitionSpec())
    num_slots = -(-num_items // len(devices)) * len(devices)
    queue = _abstract(np.zeros(num_slots, np.int32), mesh, PartitionSpec(_AXIS))
    lanes = _abstract(_idle(method, mesh, num_lanes, data, num_slots), mesh, PartitionSpec(_AXIS))
    return _advance.lower(method, mesh, _steps_per_call(devices), data, queue, lanes)


class _Solved:
    """The results that have been gathered on the host."""

    def __init__(self, items):
        self.is_solved = items < 0
        self.results = None

    @property
    def num_missing(self) -> int:
        return int(np.sum(~self.is_solved))

    def missing(self) -> np.ndarray:
        return np.flatnonzero(~self.is_solved)

    def store(self, positions, results, is_new):
        """Stores the new rows of the results at the given positions."""
        rows = jax.tree.map(np.asarray, results)
        if self.results is None:
            self.results = jax.tree.map(lambda row: np.zeros((self.is_solved.size, *row.shape[1:]), row.dtype), rows)
        jax.tree.map(lambda result, row: result.__setitem__(positions, row[is_new]), self.results, rows)
        self.is_solved[positions] = True


def _as_items(items) -> np.ndarray:
    items = np.asarray(items, np.int32)
    if items.ndim != 1 or not (items >= 0).any():
        raise ValueError(f"items must be a sequence of at least one number from 0 on, got shape {items.shape}")
    return items


def _fewer(num_lanes, error) -> int:
    """Half the number of lanes, with a warning, if the error means that memory ran out; else raises the error."""
    if not _devices.is_out_of_memory(error) or num_lanes == 1:
        raise error
    num_lanes //= 2
    warn(f"out of memory: going on with {num_lanes} lanes on each device")
    return num_lanes


def _steps_per_call(devices) -> int:
    return 1 if devices[0].platform == "cpu" else _STEPS_PER_CALL


def _abstract(tree, mesh, spec):
    """The shapes, dtypes and shardings of the arrays that `_spread` makes from the tree."""
    sharding = _sharding(mesh, spec)

    def abstract(leaf):
        return jax.ShapeDtypeStruct(
            leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True), sharding=sharding
        )

    return jax.tree.map(abstract, tree)


def _sum(numbers) -> int:
    return int(np.asarray(numbers).sum())


def _spread(tree, mesh, spec):
    return jax.device_put(tree, _sharding(mesh, spec))


def _sharding(mesh, spec):
    # On one device, the sharding that results have: with another one, the next call would be compiled again.
    return NamedSharding(mesh, PartitionSpec() if mesh.size == 1 else spec)


def _deal(positions, length, num_devices):
    """Positions dealt out to the devices in turn: the queues, one after the other, padded with -1 to `length`."""
    padded = np.full(length * num_devices, -1)
    padded[: len(positions)] = positions
    return padded.reshape(length, num_devices).T.reshape(-1)


def _idle(method, mesh, num_lanes, data, num_slots) -> _Lanes:
    """Lanes without items, made on the host so that nothing is compiled."""
    state = _start.eval_shape(method, data, jax.ShapeDtypeStruct((), jnp.int32))
    result = _result.eval_shape(method, state)
    num_devices = mesh.size

    def zeros(number, tree):
        return jax.tree.map(lambda leaf: np.zeros((number * num_devices, *leaf.shape), leaf.dtype), tree)

    num_slots //= num_devices
    lanes: dict[str, Any] = {
        "slots": np.full(num_lanes * num_devices, num_slots, np.int32),
        "states": zeros(num_lanes, state),
        "results": zeros(num_slots, result),
        "is_solved": np.zeros(num_slots * num_devices, bool),
        **dict.fromkeys(("next_slot", "num_solved", "num_steps", "num_busy"), np.zeros(num_devices, np.int32)),
    }
    return _Lanes(**lanes)


# Compiled for their traces alone, which are kept.
@functools.partial(_programs.jit, static_argnums=0)
def _start(method, data, item):
    return method.start(data, item)


@functools.partial(_programs.jit, static_argnums=0)
def _result(method, state):
    return method.result(state)


@functools.partial(_programs.jit, static_argnums=(0, 1), compiler_options=_OPTIONS)
def _evaluate(function, mesh, data, items):
    specs = (PartitionSpec(), PartitionSpec(_AXIS))
    return _shard(jax.vmap(function, in_axes=(None, 0)), mesh, specs)(data, items)


@functools.partial(_programs.jit, static_argnums=(0, 1, 2), compiler_options=_OPTIONS)
def _advance(method, mesh, num_steps, data, queue, lanes):
    def on_device(data, queue, lanes):
        lanes = lanes._replace(num_steps=jnp.zeros_like(lanes.num_steps), num_busy=jnp.zeros_like(lanes.num_busy))
        if num_steps == 1:
            return _step(method, data, queue, lanes)
        num_queued = jnp.sum(queue >= 0)
        return jax.lax.while_loop(
            lambda lanes: (lanes.num_steps[0] < num_steps) & (lanes.num_solved[0] < num_queued),
            functools.partial(_step, method, data, queue),
            lanes,
        )

    specs = (PartitionSpec(), PartitionSpec(_AXIS), PartitionSpec(_AXIS))
    return _shard(on_device, mesh, specs)(data, queue, lanes)


def _step(method, data, queue, lanes):
    """The lanes after one step: idle lanes first start the next items, and lanes that are then done write results."""
    num_queued = jnp.sum(queue >= 0, dtype=jnp.int32)
    is_idle = lanes.slots == queue.size
    next_slots = lanes.next_slot + jnp.cumsum(is_idle, dtype=jnp.int32) - 1
    is_refilled = is_idle & (next_slots < num_queued)
    slots = jnp.where(is_refilled, next_slots, lanes.slots)
    is_taken = slots < queue.size
    items = queue[jnp.where(is_taken, slots, 0)]  # idle lanes repeat the first item
    started = jax.vmap(method.start, in_axes=(None, 0))(data, items)
    states = _where(is_refilled, started, lanes.states)

    is_busy = is_taken & ~jax.vmap(method.done)(states)
    stepped = jax.vmap(method.step, in_axes=(None, 0, 0))(data, items, states)
    states = _where(is_busy, stepped, states)

    is_finished = is_taken & jax.vmap(method.done)(states)
    rows = jnp.where(is_finished, slots, queue.size)  # rows beyond the end are dropped
    results = jax.tree.map(
        lambda table, row: table.at[rows].set(row, mode="drop"), lanes.results, jax.vmap(method.result)(states)
    )
    return _Lanes(
        slots=jnp.where(is_finished, queue.size, slots).astype(jnp.int32),
        states=states,
        next_slot=lanes.next_slot + jnp.sum(is_refilled, dtype=jnp.int32),
        results=results,
        is_solved=lanes.is_solved.at[rows].set(True, mode="drop"),
        num_solved=lanes.num_solved + jnp.sum(is_finished, dtype=jnp.int32),
        num_steps=lanes.num_steps + 1,
        num_busy=lanes.num_busy + jnp.sum(is_busy, dtype=jnp.int32),
    )


def _where(condition, new, old):
    def select(new, old):
        return jnp.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(select, new, old)


def _shard(function, mesh, in_specs):
    if mesh.size == 1:
        return function
    # The check of varying axes would refuse classifiers with loops whose carry starts from a constant. It guards
    # collectives, and there are none here.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec(_AXIS), check_vma=False)
