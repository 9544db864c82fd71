"""A run, from data to picture: each stage leaves a file, and a stage whose file is there is not run again."""

import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm

import hmt_jax
from experiments import folder, manipulations
from experiments.config import Experiment
from hmt_jax import attacks, checkpoints, data, lanes, models, plots, statistics, subspaces, training

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
      FloatingPointError: if training diverges.
      OSError: if the folder can't be written.
    """
    folder.check(path, name, config)
    if (path / "margins.png").exists() and not fresh:
        print(f"{name} is finished already; --fresh starts over")
    else:
        # All that can be wrong with the configuration shows before the folder is touched.
        dataset = data.load(config.data, data_dir)
        diagonal = subspaces.dct_diagonal(dataset.image_shape, config.window_size, config.window_step)
        attack = config.training_attack(dataset.image_shape)
        classifier, architecture = _untrained(config, dataset)
        folder.start(path, name, config, fresh=fresh)
        if config.with_baseline:
            print(f"{name}, without the attack:")
            baseline = dataclasses.replace(config, attack="none", with_baseline=False)
            run(name, baseline, path / "baseline", data_dir=data_dir)
            print(f"\n{name}:")
        if not (path / "checkpoint.safetensors").exists():
            _train(config, dataset, diagonal, attack, classifier, architecture, path)
        if config.evaluation_attack is not None and not (path / "robustness.json").exists():
            _evaluate_robustness(config, dataset, diagonal, path)
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
    init_key, *_ = _keys(config)
    return models.create(**architecture, key=init_key, mean=mean, std=std), architecture


def _keys(config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random keys of the weights, of training, and of attacks in evaluation."""
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    return init_key, train_key, jax.random.fold_in(train_key, config.num_epochs)


def _train(config, dataset, diagonal, attack, classifier, architecture, path) -> None:
    """Trains the classifier, from its last checkpoint if there is one, and writes its history and itself."""
    _, train_key, _ = _keys(config)
    train_images = manipulations.apply(config.manipulation, dataset.train_images)
    test_images = manipulations.apply(config.manipulation, dataset.test_images)
    state = training.start(classifier, config.recipe, len(train_images))

    with checkpoints.Checkpoints(path / "checkpoints") as kept:
        history: list[dict[str, Any]] = []
        first_epoch = 0
        if kept.last_epoch is not None:
            state, history = kept.restore(state)
            first_epoch = kept.last_epoch + 1
        seconds_before = history[-1]["seconds"] if history else 0
        started = time.perf_counter()
        with _bar(config.num_epochs, "training", "epoch", first_epoch) as bar:

            def on_epoch(epoch, state, metrics):
                trained = training.classifier_of(state)
                test = training.evaluate(trained, test_images, dataset.test_labels)
                history.append(
                    {
                        "epoch": epoch,
                        "train_loss": metrics.loss,
                        "train_accuracy": metrics.accuracy,
                        "test_loss": test.loss,
                        "test_accuracy": test.accuracy,
                        "seconds": round(seconds_before + time.perf_counter() - started, 2),
                    }
                )
                if config.measure_every and (epoch + 1) % config.measure_every == 0:
                    monitored = test_images[: config.num_monitored], dataset.test_labels[: config.num_monitored]
                    history[-1] |= _monitor(config, trained, *monitored, attack, diagonal)
                kept.save(epoch, state, score=test.accuracy, history=history)
                bar.set_postfix(test_accuracy=f"{test.accuracy:.2%}", refresh=False)
                bar.update()

            try:
                training.train(
                    classifier,
                    train_images,
                    dataset.train_labels,
                    config.recipe,
                    train_key,
                    attack=attack,
                    state=state,
                    on_epoch=on_epoch,
                )
            except FloatingPointError as error:
                last = f"after epoch {kept.last_epoch}" if kept.last_epoch is not None else "the one before training"
                raise FloatingPointError(f"{error}; the last good state is {last}, in {path / 'checkpoints'}") from None
        folder.write_json(path / "history.json", kept.restore(state)[1])
        for file, epoch in (("best", kept.best_epoch), ("checkpoint", kept.last_epoch)):
            state, history = kept.restore(state, epoch)
            models.save(
                path / f"{file}.safetensors",
                training.classifier_of(state),
                architecture=architecture,
                data=config.data,
                manipulation=config.manipulation,
                training=history[-1],
            )


def _monitor(config, classifier, images, labels, attack, diagonal) -> dict[str, Any]:
    """Margins and robustness of a classifier in training, on a few test images."""
    classifier.eval()
    result = hmt_jax.measure_margins(classifier, data.as_floats(images), diagonal, config.solver)
    found: dict[str, Any] = {"median_margins": [_number(median) for median in statistics.summarize(result).median]}
    if attack is not None:
        found |= _attacked(config, classifier, images, labels, attack, diagonal)
    return found


def _evaluate_robustness(config, dataset, diagonal, path) -> None:
    """Measures the first test images under attack, and how the attack's strength depends on its number of steps."""
    classifier, _ = models.load(path / "checkpoint.safetensors")
    images = data.as_floats(manipulations.apply(config.manipulation, dataset.test_images[: config.num_images]))
    labels = dataset.test_labels[: len(images)]
    weaker = dataclasses.replace(config, evaluation_steps=max(config.evaluation_steps // 4, 1))
    folder.write_json(
        path / "robustness.json",
        {
            "norm": config.norm,
            "epsilon": config.epsilon,
            "evaluations": [
                {
                    "num_steps": each.evaluation_steps,
                    **_attacked(config, classifier, images, labels, each.evaluation_attack, diagonal),
                }
                for each in (weaker, config)
            ],
        },
    )


def _attacked(config, classifier, images, labels, attack, diagonal) -> dict[str, Any]:
    """Accuracy under an attack, and the energy of its perturbations in each window."""
    *_, attack_key = _keys(config)
    metrics = attacks.evaluate(classifier, images, labels, attack, attack_key, stack=diagonal)
    return {
        "clean_accuracy": metrics.clean_accuracy,
        "robust_accuracy": metrics.accuracy,
        "perturbation_energy": [float(energy) for energy in np.asarray(metrics.energy)],
    }


def _measure(config, dataset, diagonal, path) -> None:
    """Measures the first test images along the diagonal, and writes their margins with all that they belong to."""
    classifier, _ = models.load(path / "checkpoint.safetensors")
    images = data.as_floats(manipulations.apply(config.manipulation, dataset.test_images[: config.num_images]))
    started = time.perf_counter()
    with _bar(len(diagonal) * len(images), "margins", "pair") as bar:
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
            "robustness": _robustness(path),
            "baseline_robustness": _robustness(path / "baseline"),
            "margin_over_baseline": _margin_over_baseline(summary, path),
            "training_seconds": history[-1]["seconds"],
            "measurement_seconds": round(measurement["seconds"], 2),
            "utilization": round(result.work.utilization, 4),
            "num_images": result.margin.shape[1],
            "confidence": summary.confidence,
            "windows": windows,
        },
    )
    ticks = [str(row) for row, _ in corners.tolist()]
    xlabel = f"first frequency of the {config.window_size} x {config.window_size} DCT window, from low to high"
    if config.measure_every:
        measured = [entry for entry in history if "median_margins" in entry]
        _save(
            plots.margin_history(
                [entry["epoch"] + 1 for entry in measured],
                [[np.nan if median is None else median for median in entry["median_margins"]] for entry in measured],
                title=f"{name}: median margins of {config.num_monitored} test images in training",
                ticks=ticks,
                xlabel=xlabel,
            ),
            path / "history.png",
        )
    figure = plots.margin_distribution(
        result,
        title=f"{name}: test accuracy {history[-1]['test_accuracy']:.2%}, {result.margin.shape[1]} test images",
        ticks=ticks,
        xlabel=xlabel,
    )
    _save(figure, path / "margins.png")


def _save(figure, path) -> None:
    with folder.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _robustness(path) -> dict[str, Any] | None:
    """What was measured under the strongest attack in a run's folder."""
    file = path / "robustness.json"
    if not file.exists():
        return None
    found = folder.read_json(file)
    return {"norm": found["norm"], "epsilon": found["epsilon"], **found["evaluations"][-1]}


def _margin_over_baseline(summary, path) -> list[float | None] | None:
    """The median margin of each window over that of the network trained without the attack."""
    file = path / "baseline" / "summary.json"
    if not file.exists():
        return None
    medians = [window["median"] for window in folder.read_json(file)["windows"]]
    return [
        _number(median / baseline) if baseline else None
        for median, baseline in zip(summary.median, medians, strict=True)
    ]


def _bar(total, description, unit, initial=0) -> tqdm.tqdm:
    """A progress bar; where no terminal shows it, a line now and then."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm.tqdm(
        total=total, desc=description, unit=unit, initial=initial, mininterval=interval, maxinterval=interval
    )


def _report(summary) -> str:
    """The summary as a table for the terminal."""
    lines = [
        f"test accuracy {summary['test_accuracy']:.2%}; {summary['num_images']} images; "
        f"training {summary['training_seconds']:.0f} s, margins {summary['measurement_seconds']:.0f} s",
        *_robustness_lines(summary),
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


def _robustness_lines(summary) -> list[str]:
    lines = []
    if (found := summary["robustness"]) is not None:
        norm = {"l2": "L2", "linf": "L-infinity"}[found["norm"]]
        lines.append(
            f"accuracy under PGD of {found['num_steps']} steps, {norm} norm at most {found['epsilon']:g}: "
            f"{found['robust_accuracy']:.2%} ({found['clean_accuracy']:.2%} of the same images without it)"
        )
    if (baseline := summary["baseline_robustness"]) is not None:
        lines.append(f"without adversarial training: {baseline['robust_accuracy']:.2%}")
    if (ratios := summary["margin_over_baseline"]) is not None:
        text = " ".join(_text(ratio) for ratio in ratios)
        lines.append(f"medians over those without adversarial training: {text}")
    return lines


def _text(number) -> str:
    return "-" if number is None else f"{number:.4g}"


def _number(value) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None
