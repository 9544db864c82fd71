"""The page of a run: its margins beside those of the run it is compared with, its claims and its training."""

import pathlib
from typing import Any

import hmt_jax
from experiments import report, store, tables
from hmt_jax.report import Claim, Measurement

_NO_PICTURES = "a run keeps no images"


def html(name: str, path: pathlib.Path, tested: list[dict[str, Any]]) -> str:
    """The page of the margins of a run, and of those of the run it is compared with.

    Args:
      name: name of the experiment.
      path: the folder of the run.
      tested: its claims, as `experiments.claims.Claim.test` returns them.
    """
    verdicts = [_claim(verdict) for verdict in tested]
    command = f"python -m experiments run {name}"
    found = [_measurement(name, path, verdicts, command)]
    if (other := store.baseline(path)) is not None and (other / "margins.npz").exists():
        found.append(_measurement(f"{store.read_config(other)['experiment']}, compared with", other, [], ""))
    return hmt_jax.report.html(found, title=name, command=command)


def _measurement(name: str, path: pathlib.Path, verdicts: list[Claim], command: str) -> Measurement:
    result, corners = report.read_margins(path)
    is_diagonal = bool((corners[:, 0] == corners[:, 1]).all())
    history = store.read_json(path / "history.json") if (path / "history.json").exists() else []
    curves = [key for key, value in (history[0] if history else {}).items() if isinstance(value, float)]
    return Measurement(
        name=name,
        result=result,
        subspaces=[str(row) if is_diagonal else f"{row},{column}" for row, column in corners.tolist()],
        axis="first frequency of the window" if is_diagonal else "first vertical and horizontal frequency",
        is_ordered=is_diagonal,
        corners=corners,
        claims=verdicts,
        history={key.replace("_", " "): [epoch[key] for epoch in history] for key in curves},
        no_pictures=_NO_PICTURES,
        command=command,
        attributes={**store.read_config(path), "environment": store.read_environment(path)},
    )


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
