"""The lane driver with Collatz sequences: their numbers of steps are erratic, and plain Python knows them."""

import dataclasses
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmt_jax import _devices, lanes

# How often the body of `Collatz.step` was traced.
TRACES = []


@dataclasses.dataclass(frozen=True)
class Collatz:
    """From `data[item]`, halves even numbers and maps odd n to 3 n + 1, until 1; methods differ by name only."""

    name: str = ""

    def start(self, data, item):
        return {"value": data[item], "num_steps": jnp.int32(0), "last": jnp.zeros(3, jnp.int32)}

    def step(self, data, item, state):
        TRACES.append(self)
        value = state["value"]
        value = jnp.where(value % 2 == 0, value // 2, 3 * value + 1)
        # The item is added to tell whether a lane steps with the item that it holds.
        last = jnp.concatenate([state["last"][1:], (value + 1000 * item)[None]])
        return {"value": value, "num_steps": state["num_steps"] + 1, "last": last}

    def done(self, state):
        return state["value"] == 1

    def result(self, state):
        return state["num_steps"], {"last": state["last"]}


def collatz(number, item):
    num_steps, last = 0, [0, 0, 0]
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        num_steps, last = num_steps + 1, [*last[1:], number + 1000 * item]
    return num_steps, last


# Between 0 and 118 steps; the ones are done before their first.
STARTS = np.array([27, 1, 6, 97, 1, 64, 3, 9, 2, 1, 31, 5, 7, 11, 1, 25, 8, 12, 1, 1, 18, 4, 54], np.int32)
NUM_ITEMS = len(STARTS)
NUM_STEPS = np.array([collatz(start, 0)[0] for start in STARTS.tolist()])


def solve(items, method=None, starts=STARTS, **settings):
    return lanes.solve(method or Collatz(), jnp.asarray(starts), items, **settings)


def assert_solved(results, items, starts=STARTS):
    num_steps, rest = results
    expected = [collatz(int(starts[item]), item) for item in items]
    np.testing.assert_array_equal(num_steps, [one[0] for one in expected])
    np.testing.assert_array_equal(rest["last"], [one[1] for one in expected])


def makespans(num_steps, num_lanes, num_devices):
    """Steps until each device is done: items are dealt out in turn, and each goes to the first lane that is free.

    An item that is done at the start keeps its lane for one step, in which the lane is not busy.
    """
    spans = []
    for device in range(num_devices):
        free_at = [0] * num_lanes
        for duration in np.maximum(num_steps[device::num_devices], 1).tolist():
            heapq.heapreplace(free_at, free_at[0] + duration)
        spans.append(max(free_at))
    return spans


def test_the_examples_are_erratic_enough():
    assert NUM_STEPS.min() == 0
    assert NUM_STEPS.max() == 118
    assert len(set(NUM_STEPS.tolist())) > 12


@pytest.mark.parametrize("steps_per_call", [1, 32])
@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("num_lanes", [1, 3, 7, 40])
def test_results_and_work_are_exact(num_lanes, num_devices, steps_per_call):
    items = np.arange(NUM_ITEMS)
    devices = jax.devices()[:num_devices]
    results, work = solve(items, num_lanes=num_lanes, devices=devices, steps_per_call=steps_per_call)
    assert_solved(results, items)
    assert isinstance(results[0], np.ndarray)

    spans = makespans(NUM_STEPS, num_lanes, num_devices)
    # One step a call keeps all devices in step; loops on the devices end one by one.
    num_lane_steps = num_lanes * (num_devices * max(spans) if steps_per_call == 1 else sum(spans))
    assert work == lanes.Work(num_lanes, num_lane_steps, NUM_STEPS.sum())
    assert work.utilization == NUM_STEPS.sum() / num_lane_steps


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_order_of_the_items_is_the_order_of_the_results(num_devices):
    rng = np.random.default_rng(0)
    for items in (rng.permutation(NUM_ITEMS), rng.integers(NUM_ITEMS, size=NUM_ITEMS)):
        results, work = solve(items, num_lanes=3, devices=jax.devices()[:num_devices])
        assert_solved(results, items)
        assert work.num_busy_lane_steps == NUM_STEPS[items].sum()


def test_all_local_devices_are_used_by_default():
    _, work = solve(range(NUM_ITEMS), num_lanes=3)
    assert work.num_lane_steps == 3 * 8 * max(makespans(NUM_STEPS, 3, 8))


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_items_below_zero_are_passed_over_in_the_same_compiled_code(num_devices):
    method = Collatz(f"passing over on {num_devices} devices")
    settings = {"method": method, "num_lanes": 2, "devices": jax.devices()[:num_devices]}
    solve([0, 3, 5, 7, 9], **settings)
    items = np.array([-1, 3, -1, 7, -1])
    assert num_new_traces(items, **settings) == 0
    (num_steps, rest), work = solve(items, **settings)
    np.testing.assert_array_equal(num_steps, [0, NUM_STEPS[3], 0, NUM_STEPS[7], 0])
    np.testing.assert_array_equal(rest["last"][[0, 2, 4]], 0)
    assert work.num_busy_lane_steps == NUM_STEPS[[3, 7]].sum()


@pytest.mark.parametrize("num_lanes", [1, 4])
def test_a_function_is_evaluated_once_for_every_item(num_lanes):
    def cube_and_item(data, item):
        return {"cube": data[item] ** 3, "item": item}

    items = [4, 0, 2, 2, 6, 1, 3]
    results, work = lanes.evaluate(
        cube_and_item, jnp.asarray(STARTS), items, num_lanes=num_lanes, devices=jax.devices()[:1]
    )
    np.testing.assert_array_equal(results["cube"], STARTS[items] ** 3)
    np.testing.assert_array_equal(results["item"], items)
    num_lane_steps = num_lanes * -(-len(items) // num_lanes)
    assert work == lanes.Work(num_lanes, num_lane_steps, len(items))


@pytest.mark.parametrize("items", [[0], [1], [3, 1]])
def test_fewer_items_than_lanes_and_devices(items):
    results, _ = solve(items, num_lanes=4)
    assert_solved(results, items)


def test_items_that_are_all_done_at_the_start():
    results, work = solve(np.flatnonzero(STARTS == 1), num_lanes=2, devices=jax.devices()[:1])
    np.testing.assert_array_equal(results[0], np.zeros(6))
    assert work.utilization == 0


@pytest.mark.parametrize("steps_per_call", [1, 32])
def test_lanes_are_busy_when_there_is_enough_to_do(steps_per_call):
    num_lanes = 8
    # Powers of two take as many steps as their exponent, here 1 to 6 as DeepFool's samples do.
    exponents = np.random.default_rng(0).integers(1, 7, size=20 * num_lanes)
    items = np.arange(len(exponents))
    _, work = solve(
        items,
        starts=2 ** exponents.astype(np.int32),
        num_lanes=num_lanes,
        devices=jax.devices()[:1],
        steps_per_call=steps_per_call,
    )
    assert work.utilization == exponents.sum() / (num_lanes * makespans(exponents, num_lanes, 1)[0])
    assert work.utilization >= 0.95


def num_new_traces(*args, **settings):
    before = len(TRACES)
    solve(*args, **settings)
    return len(TRACES) - before


def test_the_number_of_compilations_depends_on_neither_devices_nor_data():
    items = np.arange(NUM_ITEMS)
    fresh = {}
    for num_devices in (1, 2, 8):
        # A method of its own, so that nothing is compiled yet.
        method = Collatz(f"on {num_devices} devices")
        settings = {"method": method, "num_lanes": 3, "devices": jax.devices()[:num_devices]}
        fresh[num_devices] = num_new_traces(items, **settings)
        assert num_new_traces(items[::-1], **settings) == 0
        assert num_new_traces(items, **settings | {"starts": STARTS[::-1]}) == 0
        assert num_new_traces(items, **settings | {"method": dataclasses.replace(method)}) == 0
    assert fresh[1] == fresh[2] == fresh[8] == 1


def record_progress(**settings):
    calls = []
    solve(range(NUM_ITEMS), progress=lambda *numbers: calls.append(numbers), **settings)
    return calls


@pytest.mark.parametrize("steps_per_call", [1, 32])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_progress_never_falls_and_gets_to_the_end(num_devices, steps_per_call):
    calls = record_progress(num_lanes=3, devices=jax.devices()[:num_devices], steps_per_call=steps_per_call)
    num_solved, totals = zip(*calls, strict=True)
    assert set(totals) == {NUM_ITEMS}
    assert list(num_solved) == sorted(num_solved)
    assert num_solved[-1] == NUM_ITEMS
    assert num_solved[-2] < NUM_ITEMS
    longest = max(makespans(NUM_STEPS, 3, num_devices))
    assert len(calls) == -(-longest // steps_per_call)


class FailingDevice:
    """Stands for the compiled step, and fails in the call whose number is given, if it has that many lanes."""

    def __init__(self, monkeypatch, message, failures):
        self.advance = lanes._advance
        self.message = message
        self.failures = failures
        self.num_calls = dict.fromkeys(failures, 0)
        self.queues = {}
        monkeypatch.setattr(lanes, "_advance", self)

    def __call__(self, method, mesh, num_steps, data, queue, state):
        num_lanes = state.slots.size // mesh.size
        self.queues[num_lanes] = sorted(item for item in np.asarray(queue).tolist() if item >= 0)
        if num_lanes in self.failures:
            self.num_calls[num_lanes] += 1
            if self.num_calls[num_lanes] == self.failures[num_lanes]:
                raise jax.errors.JaxRuntimeError(self.message)
        return self.advance(method, mesh, num_steps, data, queue, state)


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 81604378624 bytes."
# Messages of JAX on CPU and on accelerators, and of the vendors' libraries below it.
MESSAGES_OF_FULL_DEVICES = [
    OUT_OF_MEMORY,
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
    "INTERNAL: Error dispatching computation: Out of memory allocating 1083801600 bytes.",
    "INTERNAL: Failed to allocate 68719476736 bytes for new constant",
    "INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "INTERNAL: cublas error: CUBLAS_STATUS_ALLOC_FAILED",
    "UNKNOWN: std::bad_alloc",
]


@pytest.mark.parametrize("num_devices", [1, 2])
def test_running_out_of_memory_halves_the_lanes_and_keeps_what_is_solved(num_devices, monkeypatch):
    device = FailingDevice(monkeypatch, OUT_OF_MEMORY, {8: 3})
    calls = []
    with pytest.warns(UserWarning, match="^out of memory: going on with 4 lanes on each device$") as warned:
        results, work = solve(
            np.arange(NUM_ITEMS),
            num_lanes=8,
            devices=jax.devices()[:num_devices],
            progress=lambda *numbers: calls.append(numbers),
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert_solved(results, np.arange(NUM_ITEMS))

    # Two steps were taken by 8 lanes, in which short items, and those that took up their lanes, were solved.
    solved, num_busy = [], 0
    for first in range(num_devices):
        waiting = list(range(first, NUM_ITEMS, num_devices))
        held = [(item, NUM_STEPS[item]) for item in waiting[:8]]
        waiting = waiting[8:]
        for _ in range(2):
            num_busy += sum(left > 0 for _, left in held)
            held = [(item, left - 1) for item, left in held]
            solved += [item for item, left in held if left <= 0]
            held = [(item, left) for item, left in held if left > 0]
            refill, waiting = waiting[: 8 - len(held)], waiting[8 - len(held) :]
            held += [(item, NUM_STEPS[item]) for item in refill]
    unsolved = [item for item in range(NUM_ITEMS) if item not in solved]
    assert 0 < len(unsolved) < NUM_ITEMS
    assert device.queues == {8: list(range(NUM_ITEMS)), 4: unsolved}
    assert work.num_lanes == 4
    assert work.num_busy_lane_steps == num_busy + NUM_STEPS[unsolved].sum()
    spans = makespans(NUM_STEPS[unsolved], 4, num_devices)
    assert work.num_lane_steps == num_devices * (8 * 2 + 4 * max(spans))

    num_solved = [call[0] for call in calls]
    assert num_solved[1] == len(solved)
    assert num_solved == sorted(num_solved)
    assert calls[-1] == (NUM_ITEMS, NUM_ITEMS)


def test_lanes_are_halved_as_often_as_it_takes(monkeypatch):
    FailingDevice(monkeypatch, OUT_OF_MEMORY, {7: 1, 3: 2})
    with pytest.warns(UserWarning, match="out of memory") as warned:
        results, work = solve(np.arange(NUM_ITEMS), num_lanes=7, devices=jax.devices()[:1], steps_per_call=32)
    assert [str(warning.message) for warning in warned] == [
        "out of memory: going on with 3 lanes on each device",
        "out of memory: going on with 1 lanes on each device",
    ]
    assert_solved(results, np.arange(NUM_ITEMS))
    assert work.num_lanes == 1


def test_running_out_of_memory_in_the_first_step_on_cpu(monkeypatch):
    FailingDevice(monkeypatch, MESSAGES_OF_FULL_DEVICES[2], {8: 1})
    with pytest.warns(UserWarning, match="^out of memory: going on with 4 lanes on each device$"):
        results, work = solve(np.arange(NUM_ITEMS), num_lanes=8, devices=jax.devices()[:1])
    assert_solved(results, np.arange(NUM_ITEMS))
    assert work.num_busy_lane_steps == NUM_STEPS.sum()


def test_a_function_is_evaluated_in_smaller_batches_when_memory_runs_out(monkeypatch):
    evaluate, num_failures = lanes._evaluate, 0

    def failing(function, mesh, data, batch):
        nonlocal num_failures
        if len(batch) > 3 * mesh.size:
            num_failures += 1
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)
        return evaluate(function, mesh, data, batch)

    monkeypatch.setattr(lanes, "_evaluate", failing)
    items = np.array([4, -1, 0, 2, 2, 6, -1, 1, 3])
    with pytest.warns(UserWarning, match="^out of memory: going on with 3 lanes on each device$") as warned:
        squares, work = lanes.evaluate(
            lambda data, item: data[item] ** 2, jnp.asarray(STARTS), items, num_lanes=6, devices=jax.devices()[:2]
        )
    assert (len(warned), num_failures) == (1, 1)
    assert warned[0].filename == __file__
    np.testing.assert_array_equal(squares, np.where(items >= 0, STARTS[items] ** 2, 0))
    assert work == lanes.Work(3, 2 * 3 * 2, 7)


def test_running_out_of_memory_with_one_lane_is_an_error(monkeypatch):
    FailingDevice(monkeypatch, OUT_OF_MEMORY, {2: 1, 1: 3})
    with (
        pytest.warns(UserWarning, match="going on with 1 lanes"),
        pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"),
    ):
        solve(np.arange(NUM_ITEMS), num_lanes=2, devices=jax.devices()[:1])


@pytest.mark.parametrize("message", MESSAGES_OF_FULL_DEVICES)
def test_running_out_of_memory_is_recognised_whatever_the_device_calls_it(message):
    assert _devices.is_out_of_memory(jax.errors.JaxRuntimeError(message))


@pytest.mark.parametrize(
    ("error", "is_out_of_memory"),
    [
        (MemoryError(), True),  # of NumPy and of Python
        (jax.errors.JaxRuntimeError("INTERNAL: the device has left the bus"), False),
        (ValueError("a model that is out of memory"), False),
    ],
)
def test_other_errors_are_told_apart_from_running_out_of_memory(error, is_out_of_memory):
    assert _devices.is_out_of_memory(error) == is_out_of_memory


def test_other_errors_of_the_device_pass_through(monkeypatch):
    FailingDevice(monkeypatch, "INTERNAL: the device has left the bus", {8: 3})
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: the device has left the bus"):
        solve(np.arange(NUM_ITEMS), num_lanes=8, devices=jax.devices()[:1])


def test_errors_of_the_method_pass_through():
    class Unfinished(Collatz):
        def step(self, data, item, state):
            raise NotImplementedError("no step yet")

    with pytest.raises(NotImplementedError, match="no step yet"):
        solve([0], method=Unfinished(), num_lanes=1)


@pytest.mark.parametrize(
    ("items", "shape"), [([], r"\(0,\)"), (3, r"\(\)"), ([[0, 1]], r"\(1, 2\)"), ([-1, -1], r"\(2,\)")]
)
def test_items_are_checked(items, shape):
    message = f"items must be a sequence of at least one number from 0 on, got shape {shape}"
    with pytest.raises(ValueError, match=message):
        solve(items, num_lanes=1)


def test_devices_are_checked():
    with pytest.raises(ValueError, match="devices is empty: pass at least one, or None for all local devices"):
        solve([0], num_lanes=1, devices=[])


@pytest.mark.parametrize(("num_lanes", "steps_per_call"), [(0, 1), (-1, 1), (1, 0), (2, -3)])
def test_numbers_of_lanes_and_steps_are_checked(num_lanes, steps_per_call):
    with pytest.raises(
        ValueError,
        match="num_lanes must be at least 1, got" if num_lanes < 1 else "steps_per_call must be at least 1, got",
    ):
        solve([0], num_lanes=num_lanes, steps_per_call=steps_per_call)
    with pytest.raises(ValueError, match=r"num_lanes must be a whole number, got 2\.5"):
        solve([0], num_lanes=2.5)
