"""A table of all solvers on the network of a run: how near to the least known margins they come, and at what cost."""

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np

import hmt_jax
from experiments import claims, store, tables
from experiments.analyses import audit
from hmt_jax import solvers, statistics, subspaces

_BISECTIONS = 10
_CHECK = 2  # forward passes of a bisection at its ends, before the first halving
_NUM_WINDOWS = 5
_LONG = 60.0  # seconds of a call in which compiling hardly counts, so that there is no second one

# A solver and the number of bisections after it, by name.
CONTENDERS: dict[str, tuple[solvers.Solver, int]] = {
    "deepfool": (solvers.DeepFool(), 0),
    f"deepfool, {_BISECTIONS} bisections": (solvers.DeepFool(), _BISECTIONS),
    "superdeepfool": (solvers.SuperDeepFool(), _BISECTIONS),
    "closest_point, 20 steps": (solvers.ClosestPoint(), _BISECTIONS),
    "fmn, 50 steps": (solvers.FMN(), _BISECTIONS),
    "ddn, 20 steps": (solvers.DDN(num_steps=20), _BISECTIONS),
    "ddn, 50 steps": (solvers.DDN(), _BISECTIONS),
    "tight, quick": (solvers.tight("quick"), 0),
    "tight, fast": (solvers.tight("fast"), 0),
    "tight, normal": (solvers.tight("normal"), 0),
    "tight, thorough": (solvers.tight("thorough"), 0),
}

_QUICK, _THOROUGH = solvers.tight("quick"), solvers.tight("thorough")

_CHANGES: dict[str, dict[str, Any]] = {
    "3 candidates": {"num_candidates": 3},
    "no momentum": {"momentum": 0.0},
    "momentum 0.25": {"momentum": 0.25},
    "first temperature 0.2": {"temperature": 0.2},
    "two steps of polish": {"num_polish": 2},
    "no haste, 6 steps": {"haste": 0.0, "num_steps": 6},
    "no haste, 8 steps": {"haste": 0.0, "num_steps": 8},
    "haste 10": {"haste": 10.0},
    "haste 60": {"haste": 60.0},
    "16 steps": {"num_steps": 16},
    "26 steps": {"num_steps": 26},
}
_LONGER: dict[str, dict[str, Any]] = {
    "thorough, 80 rounds": {"num_rounds": 80},
    "thorough, 58 steps": {"num_steps": 58},
    "thorough, 9 starts": {"num_starts": 9},
}
# The quick walk without one of its parts at a time, or with more or less of it; and more of the thorough one.
VARIANTS: dict[str, tuple[solvers.Solver, int]] = {
    "deepfool": (solvers.DeepFool(), 0),
    **{effort: (solvers.tight(effort), 0) for effort in ("quick", "fast", "normal", "thorough")},
    **{name: (dataclasses.replace(_QUICK, **changes), 0) for name, changes in _CHANGES.items()},
    **{name: (dataclasses.replace(_THOROUGH, **changes), 0) for name, changes in _LONGER.items()},
}


def compare_solvers(path: pathlib.Path, *, num_images: int = 50, data_dir: str | None = None) -> str:
    """The ratios of all solvers' margins to the least that any of them found, in the whole space and five windows.

    The images are the last ones for testing, on which no setting of a solver was chosen. `solvers.json`, in the run's
    folder, has all numbers.

    Returns:
      A table in Markdown: median and 90th percentile of the ratios by subspace, pairs without a margin, forward and
      backward passes a pair, and milliseconds a pair, compilation left out.

    Raises:
      ValueError: if the folder is not that of a finished run of the kind `Images` along the diagonal, or the data set
        is not prepared.
    """
    compared = _compared(CONTENDERS, path, num_images, data_dir)
    store.write_json(path / "solvers.json", compared)
    return tables.markdown(tables.solvers(compared))


def compare_variants(path: pathlib.Path, *, num_images: int = 50, data_dir: str | None = None) -> str:
    """The same ratios and costs for variants of the quick and the thorough walk, as `compare_solvers` returns them.

    Raises:
      ValueError: as `compare_solvers`.
    """
    return tables.markdown(tables.solvers(_compared(VARIANTS, path, num_images, data_dir)))


def _compared(contenders, path, num_images, data_dir) -> dict[str, Any]:
    """The row of each solver, with the experiment and the environment, as JSON can hold them."""
    run = audit.reopen(path, 1, data_dir)
    images = run.last_images(num_images)
    shown = np.unique(np.linspace(0, len(run.corners) - 1, _NUM_WINDOWS).round().astype(int))
    windows = run.config.measured(images.shape[1:])
    spaces = {"whole space": subspaces.full(images.shape[1:])}
    spaces |= {f"window {run.corners[r][0]},{run.corners[r][1]}": windows[r] for r in shown}
    rows, margins = [], []
    for name, (solver, num_bisections) in contenders.items():
        with run.config.pixels_explained():
            result, seconds = _measure(solver, num_bisections, run.classifier, images, list(spaces.values()))
        margins.append(statistics.censored_margins(result))
        rows.append({"solver": name, **_costs(solver, num_bisections, result, seconds)})
    best = np.fmin.reduce(margins)
    for row, found in zip(rows, margins, strict=True):
        with np.errstate(invalid="ignore"):
            medians, high = (statistics.percentile(found / best, rank) for rank in (50, 90))
        ratios = ([*map(claims.for_json, pair)] for pair in zip(medians, high, strict=True))
        row["ratios"] = dict(zip(spaces, ratios, strict=True))
    return {"experiment": run.name, "environment": store.environment(), "num_images": len(images), "rows": rows}


def _measure(solver, num_bisections, classifier, images, spaces) -> tuple[hmt_jax.MarginResult, float]:
    """The result, and the seconds of a second call, which compiles nothing; those of the first if it was a long one."""
    seconds = 0.0
    for _ in range(2):
        if seconds > _LONG:
            break
        started = time.perf_counter()
        result = hmt_jax.measure_margins(classifier, images, spaces, solver, keep_coordinates=num_bisections > 0)
        if num_bisections:
            result = hmt_jax.bisect(classifier, images, spaces, result, num_steps=num_bisections)
        seconds = time.perf_counter() - started
    return result, seconds


def _costs(solver, num_bisections, result, seconds) -> dict[str, Any]:
    """Costs a pair; passes are counted with those at the samples, without the last look at what was found."""
    num_pairs, num_images = result.margin.size, result.margin.shape[1]
    num_found, num_others = int(result.is_converged.sum()), solver.num_candidates - 1
    # The first step starts from the linearisation at the sample, which all subspaces share.
    num_later = int(result.num_steps.sum()) - num_pairs
    per_step = num_others if isinstance(solver, solvers.DeepFool | solvers.SuperDeepFool) else 1
    forward, backward = num_images + num_later, num_others * num_images + per_step * num_later
    if num_bisections:
        forward += (_CHECK + num_bisections) * num_found
    if isinstance(solver, solvers.DeepFool):  # looks at the label after every step
        forward += num_pairs + num_later
    return {
        "num_without_margin": num_pairs - num_found,
        "forward": forward / num_pairs,
        "backward": backward / num_pairs,
        "milliseconds": 1e3 * seconds / num_pairs,
    }
