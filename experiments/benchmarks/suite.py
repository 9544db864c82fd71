"""A suite of measurements for a device that is lent for some minutes: the most valuable first, within a budget."""

import concurrent.futures
import functools
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hmt_jax
from experiments import manipulations, registry, run, store
from experiments.benchmarks import reference as authors
from experiments.benchmarks import workloads
from experiments.benchmarks.margins import censored
from experiments.benchmarks.timing import forward_flops, matrix_rate, record
from experiments.benchmarks.training import NUM_EPOCHS, rates_of
from experiments.claims import for_json
from experiments.images import Images
from hmt_jax import data, models, solvers, statistics, training
from hmt_jax.classifiers import as_pytree
from hmt_jax.margins._plan import Plan

_LEAST_SECONDS = 10.0  # within which no row is begun, because it would hardly compile
_PART_OF_BUDGET = 1 / 20  # the most that a row takes once it is compiled, if it can measure fewer images
_PART_OF_REST = 1 / 3  # the most that one image may take
_SHARE_OF_RATE = 0.2  # of products of matrices: what a network is expected to reach before it has been measured
# About the number of passes of a pair, forward and backward. Only the number of images depends on it.
_PASSES = {"DeepFool": 16, "quick": 26, "fast": 48, "normal": 140, "thorough": 1200}
_PRECISIONS = ("highest", "high", "default")
# Of a network: its workload, the number of images, and the efforts of `tight`.
_NETWORKS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "ResNet-18": ("resnet18_cifar10", 1000, ("quick", "fast", "normal", "thorough")),
    "ResNet-50": ("resnet50_imagenet", 1000, ("quick",)),
    "LeNet": ("lenet_mnist", 10_000, ("quick",)),
}
_SHOWN = ("measurement", "value", "unit", "num_images", "note", "not_measured")

Row = dict[str, Any]
#: What measures a row: a function of the rows before it, by name, and of the seconds that are left.
Measure = Callable[[Mapping[str, Row], float], Row]


class _NotMeasuredError(Exception):
    """The reason for which a row is left out."""


def suite(
    path: pathlib.Path,
    budget: float,
    *,
    data_dir: str | None = None,
    reference: pathlib.Path | None = None,
    experiment: str = "cifar10_resnet18",
    config: Images | None = None,
    root: pathlib.Path = pathlib.Path("results"),
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Whether all work has ended: False if a row was still at work when the budget was used up.

    Prints each row and writes all of them as JSON, with the names of those to come. A row is not begun if the rows
    before it show that it would take too long; most rows measure fewer images instead.

    Args:
      path: of the JSON file.
      budget: seconds from now.
      data_dir: folder of prepared data sets.
      reference: a checkout of the authors' repository, to be timed and trained as well.
      experiment: name of the experiment that is run last.
      config: its configuration; its full form if not given.
      root: where the folder of its results is made.
      clock: the time in seconds.

    Raises:
      ValueError: for what the reference lacks.
    """
    end = clock() + budget
    if reference is not None:
        authors.check_reference(reference)
    chosen: Any = config or registry.form(experiment, is_quick=False)
    folder = root / f"{experiment}_float32"  # a run of its own: others train in the precision that JAX chooses
    measures: dict[str, Measure] = {
        **_of_margins(budget * _PART_OF_BUDGET, data_dir, reference),
        experiment: functools.partial(_ours, experiment, chosen, folder, data_dir),
        f"{experiment}, the authors' training": functools.partial(_theirs, experiment, chosen, reference, data_dir),
    }
    stopped: list[str] = []
    rows = _rows(measures, lambda: end - clock(), stopped)
    record(path, "suite", rows, _SHOWN, budget=budget, planned=list(measures))
    return not stopped


def _of_margins(most, data_dir, reference) -> dict[str, Measure]:
    """The functions that measure the rows before the experiment, the most valuable first, each for `most` seconds."""

    @functools.cache
    def load(name):
        workload, number, _ = _NETWORKS[name]
        return workloads.PLANS[workload].build(number, data_dir)

    part, lenet, resnet = functools.partial, functools.partial(load, "LeNet"), functools.partial(load, "ResNet-18")
    found: dict[str, Measure] = {f"products, {each} precision": part(_products, each) for each in _PRECISIONS}
    for name, (_, _, efforts) in _NETWORKS.items():
        found |= {f"{name}, {each}": part(_margins, part(load, name), each, most) for each in ("DeepFool", *efforts)}
    found |= {f"LeNet, {each} precision": part(_precision, lenet, each, most) for each in _PRECISIONS}
    found["LeNet, bfloat16"] = part(_precision, lenet, "bfloat16", most)
    for each in ("highest", "default"):
        found[f"training, {each} precision"] = part(_training, resnet, each, "float32", most)
    found["training, bfloat16"] = part(_training, resnet, "default", "bfloat16", most)
    if jax.default_backend() == "cpu":
        low = {name for name in found if name.endswith((" high precision", " default precision", " bfloat16"))}
        found |= dict.fromkeys(low, _of_no_use)
    for name in ("ResNet-18", "LeNet"):
        found[f"{name}, the authors' loop"] = part(_loop, part(load, name), name, reference)
    return found


def _rows(measures: Mapping[str, Measure], left: Callable[[], float], stopped: list[str]) -> Iterator[Row]:
    """The rows, measured in threads: one that is at work when the time is over is left alone, and named in `stopped`.

    Nothing else would stop what XLA compiles or computes.
    """
    before: dict[str, Row] = {}
    for name, measure in measures.items():
        seconds, row = left(), {"measurement": name}
        if stopped or seconds < _LEAST_SECONDS:
            yield row | {"not_measured": "no time was left"}
            continue
        future: concurrent.futures.Future[Row] = concurrent.futures.Future()
        threading.Thread(target=_fill, args=(future, measure, before, seconds), daemon=True).start()
        try:
            before[name] = row = row | future.result(timeout=seconds)
        except _NotMeasuredError as reason:
            row |= {"not_measured": str(reason)}
        except Exception as error:
            # The time of a lent device is short: the other rows are measured even if one fails.
            row |= {"not_measured": f"failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"}
            if not future.done():
                stopped.append(name)
                row |= {"not_measured": "not finished when the time was over"}
        yield row


def _fill(future, measure, before, seconds) -> None:
    try:
        future.set_result(measure(before, seconds))
    except BaseException as error:
        future.set_exception(error)


# How many images there is time for


def _seconds_per_pass(before, left, workload) -> tuple[float, float]:
    """The seconds of a pass through a network, and those for measuring that are left once it is compiled.

    They are those of the last row on this network or, before there is one, estimated from the products of matrices.
    """
    alike = [row for row in before.values() if row.get("network") == workload.network]
    if alike:
        return alike[-1]["seconds_per_pass"], left - alike[-1]["compile_seconds"]
    flops = forward_flops(workload.classifier, workload.images[:1])
    rate = before["products, highest precision"]["flops_per_s"]
    return flops / (_SHARE_OF_RATE * rate), left - _LEAST_SECONDS


def _number(seconds_per_image: float, left: float, most: float, batch_size: int = 1) -> int:
    """The number of images, whole batches, that there is time for.

    One batch may take longer than `most`, but must leave time for other rows.
    """
    number = int(min(left, most) / seconds_per_image) // batch_size * batch_size
    if number < batch_size and batch_size * seconds_per_image > left * _PART_OF_REST:
        raise _NotMeasuredError(f"needs about {batch_size * seconds_per_image:,.0f} s or more: too long")
    return max(number, batch_size)


def _fitted(workload, passes, before, left, most):
    """The workload with as many images as can be measured twice: the first call compiles."""
    per_pass, left = _seconds_per_pass(before, left, workload)
    number = _number(2 * len(workload.subspaces) * passes * per_pass, left, most)
    return workload._replace(images=workload.images[:number])


# Rows


def _of_no_use(before, left) -> Row:
    raise _NotMeasuredError("a CPU computes in float32, and bfloat16 is slow there")


def _products(precision, before, left) -> Row:
    rate = matrix_rate(precision=precision)
    return {"value": rate / 1e12, "unit": "TFLOP/s", "flops_per_s": rate}


def _margins(load, effort, most, before, left) -> Row:
    whole = load()
    if effort != "DeepFool":
        whole = whole._replace(solver=solvers.tight(effort))
    workload = _fitted(whole, _PASSES[effort], before, left, most)
    num_pairs, num_lanes = len(workload.images) * len(workload.subspaces), None
    if len(workload.images) < len(whole.images):
        # Few pairs would get few lanes, and be slower than the many that they stand for.
        settings: Any = {"precision": "highest", "batch_size": None, "devices": None}
        stream = iter([whole.images[:1]])
        plan = Plan(whole.classifier, stream, whole.subspaces, whole.solver, **settings)
        num_lanes = min(plan.where.num_lanes, max(num_pairs // 4, 1))
    result, first, seconds = workload.measure(1, batch_size=num_lanes)
    row = {
        "value": num_pairs / seconds,
        "unit": "pairs/s",
        "num_images": len(workload.images),
        "network": workload.network,
        "seconds_per_pass": seconds / num_pairs / _PASSES[effort],
        "compile_seconds": first - seconds,
        "steps_per_pair": float(result.num_steps.mean()),
        "num_lanes": result.work.num_lanes,
        "utilization": result.work.utilization,
        "num_unconverged": int((~result.is_converged).sum()),
        "medians": _medians(statistics.censored_margins(result)),
    }
    if workload.network == "resnet50":  # the job of LTS4/hold-me-tight#1
        row["note"] = f"50,000 images in 217 windows take {50_000 * 217 * seconds / num_pairs / 86400:.3g} days"
    return row


def _medians(margins) -> list[float | str]:
    return [for_json(median) for median in np.median(margins, axis=1)]


def _precision(load, precision, most, before, left) -> Row:
    """LeNet's medians, as ratios to those of the row with the highest precision, on the same images."""
    standard = before.get("LeNet, highest precision")
    workload = _fitted(load(), _PASSES["DeepFool"], before, left, most)
    if standard:
        workload = workload._replace(images=load().images[: standard["num_images"]])
    elif precision != "highest":
        raise _NotMeasuredError("the highest precision was not measured")
    if precision == "bfloat16":
        halved: Any = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), as_pytree(workload.classifier))
        workload, precision = workload._replace(classifier=jax.tree_util.Partial(_in_bfloat16, halved)), "highest"
    margins, seconds = censored(workload, precision=precision)
    row = {"value": margins.size / seconds, "unit": "pairs/s", "num_images": len(workload.images)}
    row |= {"medians": _medians(margins), "num_without_margin": int(np.sum(~np.isfinite(margins)))}
    if standard:
        ratios = np.array(row["medians"], float) / np.array(standard["medians"], float)
        row["note"] = f"medians {ratios.min():.4f} to {ratios.max():.4f} times those of the highest precision"
    return row


def _in_bfloat16(classifier, images):
    """Logits in float32, which is only their type. The network's weights are of bfloat16 already."""
    return classifier(images.astype(jnp.bfloat16)).astype(jnp.float32)


def _training(load, precision, dtype, most, before, left) -> Row:
    workload, batch_size = load(), training.Recipe().batch_size
    per_pass, left = _seconds_per_pass(before, left, workload)
    number = _number(3 * NUM_EPOCHS * per_pass, left, most, batch_size)  # three passes for each image
    number = min(number, max(50 * len(workload.images) // batch_size, 1) * batch_size)  # at most 50,000
    images = np.resize((255 * workload.images).astype(np.uint8), (number, *workload.images.shape[1:]))
    with jax.default_matmul_precision(precision):
        found = rates_of(workload.network, images, np.arange(number) % 10, compute_dtype=dtype)
    return {"value": found["images_per_s"], "unit": "images/s", "num_images": number, **found}


def _loop(load, name, reference, before, left) -> Row:
    plan, ours = workloads.PLANS[_NETWORKS[name][0]], before.get(f"{name}, DeepFool")
    if reference is None:
        raise _NotMeasuredError("needs --reference")
    speed = 1 / authors.seconds_per_pair(reference, load(), plan.num_reference)
    note = {"note": f"{ours['value'] / speed:.3g} times slower than here"} if ours else {}
    return {"value": speed, "unit": "pairs/s", "num_images": plan.num_reference, **note}


def _ours(name, config, folder, data_dir, before, left) -> Row:
    """The experiment, trained in float32 throughout."""
    if not store.is_finished(folder):
        rate = before.get("training, highest precision", {"value": 0})["value"]
        _check_time(config.num_epochs * len(config.load(data_dir).train_images) / rate if rate else None, left)
    started = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        run.run(name, config, folder, data_dir=data_dir)
    found = store.read_json(folder / "summary.json")
    medians = [window["median"] for window in found["windows"]]
    return _trained(found["test_accuracy"], medians, config.num_images, time.perf_counter() - started)


def _theirs(name, config, reference, data_dir, before, left) -> Row:
    """The same network and data with the training of the authors, measured here."""
    if reference is None:
        raise _NotMeasuredError("needs --reference")
    _check_time(before[name]["seconds"] if name in before else None, left)
    started = time.perf_counter()
    dataset, mean, std = manipulations.manipulate("none", config.load(data_dir))
    weights = authors.trained(reference, config.network, dataset, mean, std, config.recipe)
    shape: Any = {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
    classifier = models.from_torch(config.network, weights, **shape, mean=mean, std=std)
    images = data.as_floats(dataset.test_images[: config.num_images])
    result = hmt_jax.measure_margins(classifier, images, config.measured(dataset.image_shape), config.solver)
    accuracy = training.evaluate(classifier, dataset.test_images, dataset.test_labels).accuracy
    medians = _medians(statistics.censored_margins(result))
    return _trained(accuracy, medians, config.num_images, time.perf_counter() - started)


def _check_time(seconds: float | None, left: float) -> None:
    if seconds is None:
        raise _NotMeasuredError("how long it takes is not known")
    if seconds > left:
        raise _NotMeasuredError(f"needs about {seconds:,.0f} s: too long")


def _trained(accuracy, medians, num_images, seconds) -> Row:
    lowest, least, highest = (float(median) for median in (medians[0], min(map(float, medians)), medians[-1]))
    note = f"medians {lowest:.3g} in the lowest window, {least:.3g} at the least, {highest:.3g} in the highest"
    found = {"num_images": num_images, "note": note, "medians": medians, "seconds": seconds}
    return {"value": 100 * accuracy, "unit": "% test accuracy", **found}
