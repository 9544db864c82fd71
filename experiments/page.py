"""The page of a run: its margins beside those of the run it is compared with, its claims and its training."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

import hmt_jax
from experiments import registry, store, tables
from experiments.experiment import Config
from hmt_jax.report import Claim, Measurement

_FILE, _PAGE = store.PAGE
_NOT_DRAWN = ("epoch", "seconds")  # numbers of each epoch that are no curves


def write(path: pathlib.Path, config: Config, verdicts: Mapping[str, Any]) -> None:
    """Writes `report.html`, and what it shows of this run into `measurements.npz`, from which `hmt report` reads it.

    Args:
      path: the folder of the run, which may have been audited.
      config: its configuration.
      verdicts: its "claims", as `experiments.claims.Claim.test` returns them, and "is_quick", whether this is the quick
        form of its experiment.
    """
    described = store.read_config(path)
    name = described["experiment"]
    command = _command(name, config, is_quick=verdicts["is_quick"])
    first, *others = config.measurements(path)
    first = dataclasses.replace(
        first,
        claims=[_claim(verdict) for verdict in verdicts["claims"]],
        history=_history(path),
        command=command,
        attributes={**described, "environment": store.read_environment(path)},
    )
    own = [first, *others, *_audited(path, first)]
    store.write(path / _FILE, hmt_jax.report.to_bytes(own))
    beside: list[Measurement] = []
    if (other := store.baseline(path)) is not None:
        if not (other / _FILE).exists():
            raise ValueError(f"{other} has no {_FILE}: repeat the command of that run, which makes it anew")
        found = hmt_jax.report.load(other / _FILE)[0]
        beside = [dataclasses.replace(found, name=f"{found.name}, for comparison", claims=())]
    # The first is what others are compared with.
    page = hmt_jax.report.html([*beside, *own], title=name, command=command)
    store.write(path / _PAGE, page.encode(errors="replace"))


def _command(name: str, config: Config, *, is_quick: bool) -> str:
    """The command that makes the run again: with the fields in which it differs from its experiment."""
    words = ["python", "-m", "experiments", "run", name, *(["--quick"] if is_quick else [])]
    for field, value in registry.changes(name, dataclasses.asdict(config), is_quick=is_quick).items():
        option = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _audited(path: pathlib.Path, measured: Measurement) -> list[Measurement]:
    """The margins of an audit, and its certified bounds, if there was one that has written all of its files."""
    if not all((path / file).exists() for file in ("audit.npz", "audit.json")):
        return []
    result, arrays = store.read_margins(path / "audit.npz")
    number, certified = result.margin.shape[1], arrays["certified"]
    num_certified = int((~np.isnan(certified)).any(0).sum())
    options = ["--effort", store.read_json(path / "audit.json")["effort"], "--num-images", str(number)]
    options += ["--certify", str(num_certified)] if num_certified else []
    return [
        Measurement(
            name=f"{measured.name}, tight",
            result=result,
            **{field: getattr(measured, field) for field in ("subspaces", "axis", "is_ordered", "corners")},
            image_ids=measured.image_ids[:number],
            classifier_id=measured.classifier_id,
            bounds=certified[:, :num_certified] if num_certified else None,
            no_pictures="an audit keeps none",
            command=shlex.join(["python", "-m", "experiments", "audit", str(path), *options]),
        )
    ]


def _history(path: pathlib.Path) -> dict[str, list[float]]:
    """The curves of training by their names, if the run has trained a network."""
    epochs = store.read_json(path / "history.json") if (path / "history.json").exists() else []
    names = [key for key, value in (epochs[0] if epochs else {}).items() if isinstance(value, float)]
    return {key.replace("_", " "): [epoch[key] for epoch in epochs] for key in names if key not in _NOT_DRAWN}


def _claim(verdict: dict[str, Any]) -> Claim:
    text, value, interval, threshold, _ = tables.verdict(verdict)
    is_decided = "undecided" not in verdict
    return Claim(
        text,
        f"{value} ({interval})" if is_decided else "nothing",
        threshold,
        bool(verdict["holds"]) if is_decided else None,
        verdict["reason"] if is_decided else verdict["undecided"],
    )
