"""Margins of many samples in many subspaces, as arrays."""

import dataclasses
import io
import os
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from hmt_jax import _disk, _paths, lanes
from hmt_jax.solvers import Status

# The errors of NumPy and of zipfile for files of other kinds, and for damaged ones.
_NOT_STORED = (
    *(ValueError, TypeError, AttributeError, KeyError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
_ARRAYS = ("margin", "label", "adversarial_label", "num_steps", "status", "gap", "alignment")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MarginResult:
    """Margins of N samples in R subspaces, as NumPy arrays with axes (R, N); R = 1 for a single subspace.

    Attributes:
      margin: L2 norm of the smallest perturbation found, in pixels in [0, 1], over all channels. If `status` is not
        CONVERGED, it is not a margin but the distance reached, NaN or infinity, as `hmt_jax.Status` says.
      label: the predicted label of the sample, right or wrong; -1 if its logits name no label, because one is NaN or
        +infinite, or all are -infinite.
      adversarial_label: the label at the perturbed sample; equal to `label` if the search did not converge.
      num_steps: steps that the solver took, including its start.
      status: a `hmt_jax.Status` for each pair.
      gap: max over k != label of g_k - g_label at the perturbed sample, in logits: negative before the boundary,
        positive beyond it. NaN if there is no perturbed sample.
      alignment: cosine of the angle between the perturbation and the gradient of that gap in the subspace. If the gap
        is small, the gradient is normal to the boundary. The alignment of a minimal perturbation is 1; if it is less,
        there is a smaller perturbation nearby.
      solver: the solver, as text.
      precision: the precision of matrix products in the classifier.
      work: the cost of the run, as `hmt_jax.lanes.Work`.
      coordinates: the perturbations, an array (N, d) for each subspace in the coordinates of that subspace; None if
        they were not kept.

    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> whole = hmt_jax.subspaces.full((2, 2, 1))
    >>> parts = [hmt_jax.measure_margins(classifier, part, whole) for part in (images[:4], images[4:])]
    >>> MarginResult.concatenate(parts).margin.shape
    (1, 6)
    """

    margin: np.ndarray
    label: np.ndarray
    adversarial_label: np.ndarray
    num_steps: np.ndarray
    status: np.ndarray
    gap: np.ndarray
    alignment: np.ndarray
    solver: str
    precision: str
    work: lanes.Work
    coordinates: list[np.ndarray] | None = None

    @property
    def is_converged(self) -> np.ndarray:
        """Whether each pair has a margin, (R, N)."""
        return self.status == Status.CONVERGED

    def raise_unless_converged(self) -> None:
        """None if every pair has a margin.

        Raises:
          ValueError: if pairs have no margin; it names the first of them.
        """
        missing = np.argwhere(~self.is_converged)
        if len(missing):
            first = ", ".join(f"({r}, {n}) {Status(self.status[r, n]).name}" for r, n in missing[:5].tolist())
            raise ValueError(
                f"{len(missing)} of {self.status.size} (subspace, sample) pairs have no margin; the first: {first}"
            )

    @classmethod
    def concatenate(cls, results: Iterable["MarginResult"]) -> Self:
        """One result for several sets of images in the same subspaces, with the work of all.

        Args:
          results: at least one result, in the order of their images, all by one solver in one precision.

        Raises:
          ValueError: for no results, or results that differ in subspaces, solver or precision.
          TypeError: if one of them is no `MarginResult`.
        """
        if isinstance(results, MarginResult):
            raise TypeError("concatenate takes a list of results, got one: pass [result]")
        results = list(results)
        for result in results:
            _check_is_result("concatenate", result)
        if not results:
            raise ValueError("results is empty: pass at least one MarginResult")
        first = results[0]
        for name, layout in (
            ("numbers of subspaces", lambda result: len(result.margin)),
            ("solvers", lambda result: result.solver),
            ("precisions", lambda result: result.precision),
            ("dimensions of coordinates", _dimensions),
        ):
            found = [layout(result) for result in results]
            if different := [each for each in found if each != found[0]]:
                raise ValueError(f"results must agree in their {name}, got {found[0]} and {different[0]}")
        coordinates = None
        if first.coordinates is not None:
            coordinates = [
                np.concatenate(parts) for parts in zip(*(result.coordinates or [] for result in results), strict=True)
            ]
        work = first.work
        for result in results[1:]:
            work += result.work
        return cls(
            **{name: np.concatenate([getattr(result, name) for result in results], axis=1) for name in _ARRAYS},
            solver=first.solver,
            precision=first.precision,
            work=work,
            coordinates=coordinates,
        )

    def best_of(self, other: "MarginResult") -> Self:
        """The result with the smaller of two margins for each pair, so that no margin grows.

        If only one of the two searches converged, its margin is taken; if neither did, this result's. Coordinates are
        kept if both results have them.

        Args:
          other: margins of the same images in the same subspaces, by another solver or with other settings.

        Raises:
          ValueError: if the numbers of pairs, the dimensions of coordinates or the labels of the samples differ: then
            the images, the subspaces or the classifiers are not the same.
          TypeError: if `other` is no `MarginResult`.
        """
        _check_is_result("best_of", other)
        if self.margin.shape != other.margin.shape:
            raise ValueError(
                f"other must hold margins of the same {self.margin.shape} (subspaces, images), got {other.margin.shape}"
            )
        is_labelled = (self.label >= 0) & (other.label >= 0)
        if num_different := int(np.sum((self.label != other.label) & is_labelled)):
            raise ValueError(
                f"other must hold margins of the same images and the same classifier, but {num_different} of "
                f"{self.label.size} pairs have another label"
            )
        margins = [np.where(result.is_converged, result.margin, np.inf) for result in (self, other)]
        is_nearer = other.is_converged & ((margins[1] < margins[0]) | ~self.is_converged)
        coordinates = None
        if self.coordinates is not None and other.coordinates is not None:
            if _dimensions(self) != _dimensions(other):
                raise ValueError(
                    f"other must hold margins in the same subspaces, of dimensions {_dimensions(self)}, got "
                    f"{_dimensions(other)}"
                )
            coordinates = [
                np.where(is_nearer[r][:, None], theirs, ours)
                for r, (ours, theirs) in enumerate(zip(self.coordinates, other.coordinates, strict=True))
            ]
        return type(self)(
            **{name: np.where(is_nearer, getattr(other, name), getattr(self, name)) for name in _ARRAYS},
            solver=_joined(self.solver, other.solver),
            precision=_joined(self.precision, other.precision),
            work=self.work + other.work,
            coordinates=coordinates,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the result to an npz file, which `np.load` reads as well.

        An existing file is replaced only once the new one is complete. The file holds every array by its name,
        coordinates as `coordinates_0`, `coordinates_1` and so on, `solver` and `precision` as text, and `work` as three
        whole numbers.

        Args:
          path: the path of the file; no ending is added.

        Raises:
          OSError: if the file cannot be written.
        """
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"coordinates_{r}": rows for r, rows in enumerate(self.coordinates or [])}
        arrays |= {"solver": self.solver, "precision": self.precision, "work": np.array(dataclasses.astuple(self.work))}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{name: _as_stored(array) for name, array in arrays.items()})
        _disk.write(_paths.expand("path", path), content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The result in a file that `save` wrote.

        Args:
          path: the path of the file.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if `save` did not write the file.
        """
        file = _paths.expand("path", path)
        is_none = f"{_paths.shown(file)} is no file of MarginResult.save"
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                stored = dict(arrays)
        except _NOT_STORED as error:
            raise ValueError(f"{is_none}: {_paths.reason(error)}") from error
        names = sorted(name for name in stored if name.startswith("coordinates_"))
        if missing := [name for name in (*_ARRAYS, "solver", "precision", "work") if name not in stored]:
            raise ValueError(f"{is_none}: it has no {', '.join(missing)}")
        shape = stored["margin"].shape
        expected = [f"coordinates_{r}" for r in range(shape[0])] if len(shape) == 2 else []
        is_whole = len(shape) == 2 and all(stored[name].shape == shape for name in _ARRAYS)
        if not is_whole or stored["work"].shape != (3,) or names not in ([], sorted(expected)):
            raise ValueError(f"{is_none}: its arrays do not fit each other")
        return cls(
            **{name: stored[name] for name in _ARRAYS},
            solver=str(stored["solver"]),
            precision=str(stored["precision"]),
            work=lanes.Work(*stored["work"].tolist()),
            coordinates=[stored[name] for name in expected] if names else None,
        )


def _as_stored(array):
    """The array in a type that NumPy has itself: bfloat16 as float32, which holds the same numbers."""
    return array.astype(np.float32) if getattr(array, "dtype", np.dtype(float)).kind == "V" else array


def _check_is_result(method, result) -> None:
    if not isinstance(result, MarginResult):
        raise TypeError(f"{method} takes results of hmt_jax.measure_margins, got {type(result).__name__}")


def _dimensions(result) -> list[int] | None:
    return None if result.coordinates is None else [rows.shape[1] for rows in result.coordinates]


def _joined(first: str, second: str) -> str:
    return first if first == second else f"{first} | {second}"
