"""A table of all solvers on the network of a run: how near to the least known margins they come, and at what cost."""

import pathlib
import time
from typing import NamedTuple

import numpy as np

import hmt_jax
from experiments import report
from experiments.analyses import audit
from hmt_jax import solvers, statistics, subspaces

_BISECTIONS = 10
_CHECK = 2  # forward passes of a bisection at its ends, before the first halving
_NUM_WINDOWS = 5
_COSTS = ("no margin", "forward", "backward", "ms a pair")


class _Contender(NamedTuple):
    name: str
    solver: solvers.Solver
    num_bisections: int = 0


CONTENDERS = (
    _Contender("deepfool", solvers.DeepFool()),
    _Contender(f"deepfool, {_BISECTIONS} bisections", solvers.DeepFool(), _BISECTIONS),
    _Contender("superdeepfool", solvers.SuperDeepFool(), _BISECTIONS),
    _Contender("closest_point, 20 steps", solvers.ClosestPoint(), _BISECTIONS),
    _Contender("fmn, 50 steps", solvers.FMN(), _BISECTIONS),
    _Contender("ddn, 20 steps", solvers.DDN(num_steps=20), _BISECTIONS),
    _Contender("ddn, 50 steps", solvers.DDN(), _BISECTIONS),
    _Contender("tight, fast", solvers.tight("fast")),
    _Contender("tight, normal", solvers.tight("normal")),
    _Contender("tight, thorough", solvers.tight("thorough")),
)


def compare_solvers(path: pathlib.Path, *, num_images: int = 50, data_dir: str | None = None) -> str:
    """The ratios of all solvers' margins to the least that any of them found, in the whole space and five windows.

    Args:
      path: the folder of a finished run of the kind `Images`, along the diagonal.
      num_images: the first of its images.
      data_dir: folder of prepared data sets; TFDS's own if not given.

    Returns:
      A table in Markdown: median and 90th percentile of the ratios by subspace, pairs without a margin, forward and
      backward passes a pair, and milliseconds a pair, compilation left out.

    Raises:
      ValueError: if the folder is that of no such run, or the data set is not prepared.
    """
    _, found, classifier, images, corners = audit.reopen(path, num_images, data_dir)
    shown = np.unique(np.linspace(0, len(corners) - 1, _NUM_WINDOWS).round().astype(int))
    windows = found.measured(images.shape[1:])
    spaces = [subspaces.full(images.shape[1:]), *(windows[r] for r in shown)]
    rows, margins = [], []
    for contender in CONTENDERS:
        with found.pixels_explained():
            result, seconds = _measure(contender, classifier, images, spaces)
        margins.append(statistics.censored_margins(result))
        rows.append((contender.name, *_costs(contender, result, seconds)))
    best = np.fmin.reduce(margins)
    header = ("solver", "whole space", *(f"window {r},{c}" for r, c in corners[shown].tolist()), *_COSTS)
    lines = [(name, *_ratios(each, best), *costs) for (name, *costs), each in zip(rows, margins, strict=True)]
    return report.markdown([header, *lines])


def _measure(contender, classifier, images, spaces) -> tuple[hmt_jax.MarginResult, float]:
    """The result, and the seconds of a second run, which compiles nothing."""
    num_bisections = contender.num_bisections
    for _ in range(2):
        started = time.perf_counter()
        result = hmt_jax.measure_margins(
            classifier, images, spaces, contender.solver, keep_coordinates=num_bisections > 0
        )
        if num_bisections:
            result = hmt_jax.bisect(classifier, images, spaces, result, num_steps=num_bisections)
    return result, time.perf_counter() - started


def _costs(contender, result, seconds) -> tuple[str, ...]:
    num_pairs, num_missing = result.margin.size, int((~result.is_converged).sum())
    passes = np.array(_passes(contender, result)) / num_pairs
    return str(num_missing), *(f"{number:.1f}" for number in passes), f"{1e3 * seconds / num_pairs:.2f}"


def _passes(contender, result) -> tuple[float, float]:
    """Forward and backward passes of all pairs, with those at the samples, without the last look at what was found."""
    solver, num_pairs, num_images = contender.solver, result.margin.size, result.margin.shape[1]
    num_others = solver.num_candidates - 1
    # The first step starts from the linearization at the sample, which all subspaces share.
    num_later = int(result.num_steps.sum()) - num_pairs
    forward = num_images + num_later
    if contender.num_bisections:
        forward += (_CHECK + contender.num_bisections) * int(result.is_converged.sum())
    if isinstance(solver, solvers.DeepFool):  # looks at the label after every step
        return forward + num_pairs + num_later, num_others * (num_images + num_later)
    per_step = num_others if isinstance(solver, solvers.SuperDeepFool) else 1
    return forward, num_others * num_images + per_step * num_later


def _ratios(margins, best) -> list[str]:
    with np.errstate(invalid="ignore"):
        ratios = margins / best
    medians, high = (statistics.percentile(ratios, rank) for rank in (50, 90))
    return [f"{median:.3f} / {rest:.2f}" for median, rest in zip(medians, high, strict=True)]
