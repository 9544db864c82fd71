"""A run, from data to picture: each stage leaves a file, and a stage whose file is there is not run again."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
import tqdm

import hmt_jax
from experiments import folder, manipulations
from experiments.config import Experiment
from hmt_jax import data, lanes, models, plots, statistics, subspaces, training

_FIELDS = ("margin", "label", "adversarial_label", "num_steps", "status")


def run(name: str, config: Experiment, path: pathlib.Path, *, data_dir: str | None = None, fresh: bool = False) -> None:
    """Runs an experiment into a folder, or what is left of it to do.

    Args:
      name: of the experiment.
      config: its configuration.
      path: the folder; made if it is not there.
      data_dir: where prepared data sets are; where TFDS keeps them if not given.
      fresh: whether to start over, though results are there.

    Raises:
      ValueError: if the folder belongs to another configuration, or the data set is not prepared.
    """
    folder.check(path, name, config)
    if (path / "margins.png").exists() and not fresh:
        print(f"{name} is finished already; --fresh starts over")
    else:
        # All that can be wrong with the configuration shows before the folder is touched.
        dataset = data.load(config.data, data_dir)
        diagonal = subspaces.dct_diagonal(dataset.image_shape, config.window_size, config.window_step)
        classifier, architecture = _untrained(config, dataset)
        folder.start(path, name, config, fresh=fresh)
        if not (path / "checkpoint.safetensors").exists():
            _train(config, dataset, classifier, architecture, path)
        if not (path / "margins.npz").exists():
            _measure(config, dataset, diagonal, path)
        _summarize(name, config, path)
    print(_report(folder.read_json(path / "summary.json")))
    print(f"\nresults: {path}\npicture: {path / 'margins.png'}")


def _untrained(config, dataset) -> tuple[models.Normalized, dict[str, Any]]:
    """The classifier with random weights, and the arguments that made it."""
    architecture = {
        "name": config.network,
        "image_shape": dataset.image_shape,
        "num_classes": dataset.num_classes,
    }
    mean, std = manipulations.normalization(config.manipulation, dataset.train_images)
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    return models.create(**architecture, key=init_key, mean=mean, std=std), architecture


def _train(config, dataset, classifier, architecture, path) -> None:
    """Trains the classifier and writes its history and checkpoint."""
    _, order_key = jax.random.split(jax.random.key(config.seed))
    train_images = manipulations.apply(config.manipulation, dataset.train_images)
    test_images = manipulations.apply(config.manipulation, dataset.test_images)

    history: list[dict[str, Any]] = []
    started = time.perf_counter()
    with tqdm.tqdm(total=config.num_epochs, desc="training", unit="epoch") as bar:

        def on_epoch(epoch, state, metrics):
            test = training.evaluate(training.classifier_of(state), test_images, dataset.test_labels)
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": metrics.loss,
                    "train_accuracy": metrics.accuracy,
                    "test_loss": test.loss,
                    "test_accuracy": test.accuracy,
                    "seconds": round(time.perf_counter() - started, 2),
                }
            )
            bar.set_postfix(test_accuracy=f"{test.accuracy:.2%}", refresh=False)
            bar.update()

        classifier = training.train(
            classifier, train_images, dataset.train_labels, config.recipe, order_key, on_epoch=on_epoch
        )
    folder.write_json(path / "history.json", history)
    models.save(
        path / "checkpoint.safetensors",
        classifier,
        architecture=architecture,
        data=config.data,
        manipulation=config.manipulation,
        training=history[-1],
    )


def _measure(config, dataset, diagonal, path) -> None:
    """Measures the first test images along the diagonal, and writes their margins with all that they belong to."""
    classifier, _ = models.load(path / "checkpoint.safetensors")
    images = data.as_floats(manipulations.apply(config.manipulation, dataset.test_images[: config.num_images]))
    started = time.perf_counter()
    with tqdm.tqdm(total=len(diagonal) * len(images), desc="margins", unit="pair") as bar:
        result = hmt_jax.measure_margins(
            classifier,
            images,
            diagonal,
            config.solver,
            progress=lambda num_finished, _: bar.update(num_finished - bar.n),
        )
    folder.write_json(
        path / "measurement.json",
        {
            "seconds": time.perf_counter() - started,
            "precision": result.precision,
            "work": dataclasses.asdict(result.work),
        },
    )
    arrays = {field: getattr(result, field) for field in _FIELDS}
    with folder.whole_file(path / "margins.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, corner=diagonal.corner, true_label=dataset.test_labels[: len(images)], **arrays)


def _read_margins(config, path) -> tuple[hmt_jax.MarginResult, np.ndarray]:
    """The margins of a run, and the corners of their windows."""
    measurement = folder.read_json(path / "measurement.json")
    with np.load(path / "margins.npz") as arrays:
        fields = {field: arrays[field] for field in _FIELDS}
        corners = arrays["corner"]
    work = lanes.Work(**measurement["work"])
    result = hmt_jax.MarginResult(
        **fields, coordinates=None, solver=config.solver, precision=measurement["precision"], work=work
    )
    return result, corners


def _summarize(name, config, path) -> None:
    """The summary, and last of all the picture."""
    result, corners = _read_margins(config, path)
    history = folder.read_json(path / "history.json")
    measurement = folder.read_json(path / "measurement.json")
    summary = statistics.summarize(result)
    windows = [
        {
            "row": row,
            "column": column,
            "median": _number(summary.median[r]),
            "median_interval": [_number(end) for end in summary.median_interval[r]],
            "percentiles": {
                str(rank): _number(p) for rank, p in zip(summary.ranks, summary.percentiles[r], strict=True)
            },
            "counts": {status: int(counts[r]) for status, counts in summary.counts.items()},
        }
        for r, (row, column) in enumerate(corners.tolist())
    ]
    folder.write_json(
        path / "summary.json",
        {
            "experiment": name,
            "test_accuracy": history[-1]["test_accuracy"],
            "training_seconds": history[-1]["seconds"],
            "measurement_seconds": round(measurement["seconds"], 2),
            "utilization": round(result.work.utilization, 4),
            "num_images": result.margin.shape[1],
            "confidence": summary.confidence,
            "windows": windows,
        },
    )
    figure = plots.margin_distribution(
        result,
        title=f"{name}: test accuracy {history[-1]['test_accuracy']:.2%}, {result.margin.shape[1]} test images",
        ticks=[str(row) for row, _ in corners.tolist()],
        xlabel=f"first frequency of the {config.window_size} x {config.window_size} DCT window, from low to high",
    )
    with folder.whole_file(path / "margins.png") as temporary:
        figure.savefig(temporary, format="png")


def _report(summary) -> str:
    """The summary as a table for the terminal."""
    lines = [
        f"test accuracy {summary['test_accuracy']:.2%}; {summary['num_images']} images; "
        f"training {summary['training_seconds']:.0f} s, margins {summary['measurement_seconds']:.0f} s",
        f"{'window':>8} {'median':>9} {'95% interval':>19} {'5%':>9} {'95%':>9} {'no margin':>10}",
    ]
    for window in summary["windows"]:
        low, high = (_text(end) for end in window["median_interval"])
        percentiles = window["percentiles"]
        num_without = sum(count for status, count in window["counts"].items() if status != "converged")
        lines.append(
            f"{window['row']:>4},{window['column']:>3} {_text(window['median']):>9} {low:>9} {high:>9} "
            f"{_text(percentiles['5']):>9} {_text(percentiles['95']):>9} {num_without:>10}"
        )
    return "\n".join(lines)


def _text(number) -> str:
    return "-" if number is None else f"{number:.4g}"


def _number(value) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None
