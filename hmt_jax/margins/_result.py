"""Margins of many samples in many subspaces, as arrays."""

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from hmt_jax import _disk, _npy, _paths, _tables, lanes
from hmt_jax._extras import require
from hmt_jax.solvers import Status

if TYPE_CHECKING:
    import pandas as pd

_MOST_CHARACTERS = 110  # of the solver's settings in a line of text
_ARRAYS = ("margin", "label", "adversarial_label", "num_steps", "status", "gap", "alignment")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MarginResult:
    """Margins of N samples in R subspaces, as NumPy arrays with axes (R, N); R = 1 for a single subspace.

    `result[subspaces, images]` is the result for some subspaces and some images. Each index is a whole number, a slice,
    a list or a mask. `result[subspaces]` keeps all images. See `__getitem__`.

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
      work: the cost of the run, as `hmt_jax.lanes.Work`; a selection keeps that of the whole run.
      coordinates: the perturbations, an array (N, d) for each subspace in the coordinates of that subspace; None if
        they were not kept.

    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> whole = hmt_jax.subspaces.full((2, 2, 1))
    >>> parts = [hmt_jax.measure_margins(classifier, part, whole) for part in (images[:4], images[4:])]
    >>> result = MarginResult.concatenate(parts)
    >>> result.margin.shape
    (1, 6)
    >>> result[:, result.label[0] == 0].margin.shape
    (1, 4)
    >>> result[:, 1:3]  # doctest: +ELLIPSIS
    MarginResult(1 subspace x 2 images, all converged, median margin 0.34...;
      tight("quick") = Walk(num_steps=21, ..., highest precision)
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

    def __repr__(self) -> str:
        from hmt_jax import statistics  # which imports this module

        num_subspaces, num_images = self.margin.shape
        num_converged = int(np.sum(self.is_converged))
        medians = statistics.percentile(statistics.censored_margins(self), 50)
        medians = medians[~np.isnan(medians)]
        parts = [
            f"{_tables.counted(num_subspaces, 'subspace')} x {_tables.counted(num_images, 'image')}",
            "all converged"
            if num_converged == self.margin.size
            else f"{num_converged:,} of {self.margin.size:,} converged",
        ]
        if len(medians):
            ends = [_tables.number(end) for end in (medians.min(), medians.max())]
            parts.append(f"median margin {ends[0]}" if len(medians) == 1 else f"median margins {' to '.join(ends)}")
        if self.coordinates is not None:
            parts.append("with coordinates")
        solver = self.solver if len(self.solver) <= _MOST_CHARACTERS else f"{self.solver[: _MOST_CHARACTERS - 3]}..."
        return f"MarginResult({', '.join(parts)};\n  {solver}, {self.precision} precision)"

    def __getitem__(self, index: Any) -> Self:
        """The result for some of the subspaces, some of the images, or some of both.

        Both axes stay: a whole number selects one entry and keeps its axis, with length 1. Each axis
        is selected from by itself, unlike in NumPy, which pairs the indices: `result[[0, 5], [1, 2, 3]]` has shape
        (2, 3). Arrays of a slice share the memory of the whole result; those of lists and masks are copies.

        The work cannot be divided among pairs, because they share batches. It stays that of the whole run, as do the
        solver and the precision, so parts that are joined again count it several times.

        Args:
          index: what to select from the axes of subspaces and of images: for each a whole number, a slice, a list of
            whole numbers or a mask of truth values. With subspaces alone, all images are kept.

        Raises:
          IndexError: for numbers out of range, masks of another length, and more than two axes.
          TypeError: for anything else, such as a mask of all pairs.
        """
        rows, columns = selection(index, self.margin.shape)
        coordinates = None
        if self.coordinates is not None:
            coordinates = [self.coordinates[r][columns] for r in np.arange(len(self.coordinates))[rows]]
        return dataclasses.replace(
            self, **{name: getattr(self, name)[rows][:, columns] for name in _ARRAYS}, coordinates=coordinates
        )

    @property
    def is_converged(self) -> np.ndarray:
        """Whether each pair has a margin, (R, N)."""
        return self.status == Status.CONVERGED

    def raise_unless_converged(self) -> None:
        """Raises ValueError unless every pair has a margin.

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
          ValueError: if there are no results, or they differ in subspaces, solver or precision.
          TypeError: if one of them is not a `MarginResult`.
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
          TypeError: if `other` is not a `MarginResult`.
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

    def to_dataframe(self) -> "pd.DataFrame":
        """A pandas table with one row for each (subspace, image), all images of the first subspace first.

        Its columns are `subspace` and `image`, both numbered from 0, and the arrays of the result by their names.
        `status` is categorical, with the lower-case names of `hmt_jax.Status`, such as "out_of_steps". As in the
        result, `margin` is a margin only where it is "converged". Needs pandas: `pip install 'hmt-jax[report]'`, which
        also brings the package that writes the table as Parquet.

        Raises:
          ModuleNotFoundError: if pandas is not installed.
        """
        require("tables of margins", "report", "pandas")
        import pandas as pd

        num_subspaces, num_images = self.margin.shape
        columns: dict[str, Any] = {
            "subspace": np.repeat(np.arange(num_subspaces), num_images),
            "image": np.tile(np.arange(num_images), num_subspaces),
        }
        columns |= {name: np.ravel(_as_stored(getattr(self, name))) for name in _ARRAYS}
        names = [status.name.lower() for status in Status]
        return pd.DataFrame(columns | {"status": pd.Categorical.from_codes(columns["status"], names)})

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
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **to_arrays(self))
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
        try:
            return cls(**from_arrays(_npy.read_npz(file)))
        except ValueError as error:
            raise ValueError(f"{_paths.shown(file)} is not a file of MarginResult.save: {error}") from error


def to_arrays(result: MarginResult) -> dict[str, np.ndarray]:
    """A result as arrays, which `MarginResult.save` describes."""
    arrays: dict[str, Any] = {name: getattr(result, name) for name in _ARRAYS}
    arrays |= {f"coordinates_{r}": rows for r, rows in enumerate(result.coordinates or [])}
    arrays |= {"solver": result.solver, "precision": result.precision, "work": dataclasses.astuple(result.work)}
    return {name: _as_stored(np.asarray(array)) for name, array in arrays.items()}


def from_arrays(stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of a result that `to_arrays` has made arrays. Others among them are left alone.

    Raises:
      ValueError: if they are not those of a result; the message says what is wrong.
    """
    names = sorted(name for name in stored if name.startswith("coordinates_"))
    if missing := [name for name in (*_ARRAYS, "solver", "precision", "work") if name not in stored]:
        raise ValueError(f"it has no {', '.join(missing)}")
    shape = stored["margin"].shape
    expected = [f"coordinates_{r}" for r in range(shape[0])] if len(shape) == 2 else []
    is_whole = len(shape) == 2 and all(stored[name].shape == shape for name in _ARRAYS)
    if not is_whole or stored["work"].shape != (3,) or names not in ([], sorted(expected)):
        raise ValueError("its arrays do not fit each other")
    return {
        **{name: stored[name] for name in _ARRAYS},
        "solver": str(stored["solver"]),
        "precision": str(stored["precision"]),
        "work": lanes.Work(*stored["work"].tolist()),
        "coordinates": [stored[name] for name in expected] if names else None,
    }


def selection(index: Any, shape: Sequence[int]) -> tuple[slice | np.ndarray, slice | np.ndarray]:
    """The selection by an index from the axes of subspaces and of images: a slice or whole numbers from 0 for each.

    Args:
      index: as `MarginResult.__getitem__` takes it.
      shape: the numbers of subspaces and of images.

    Raises:
      IndexError, TypeError: as `MarginResult.__getitem__` does.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > 2:
        raise IndexError(
            f"a result has two axes, subspaces and images, but {len(parts)} were indexed: select with "
            "result[subspaces, images]"
        )
    rows, columns = (*parts, slice(None), slice(None))[:2]
    return _places("subspaces", rows, shape[0]), _places("images", columns, shape[1])


def _places(axis: str, index: ArrayLike | slice, size: int) -> slice | np.ndarray:
    if isinstance(index, slice):
        return index
    places = np.asarray(index)
    if places.dtype == bool and places.ndim == 1:
        if len(places) != size:
            raise IndexError(f"a mask of {axis} must have {size} entries, one for each of them, got {len(places)}")
        return np.flatnonzero(places)
    is_whole = np.issubdtype(places.dtype, np.integer) or places.shape == (0,)  # an empty list is an array of floats
    if not is_whole or places.ndim > 1:
        found = repr(index) if places.ndim == 0 else f"an array {places.shape} of {places.dtype}"
        raise TypeError(
            f"{axis} are selected by a whole number, a slice, or a list or mask with one axis, got {found}: select "
            "from each axis by itself, as in result[:, is_kept]"
        )
    places = places.astype(int)
    if places.size and (places.min() < -size or places.max() >= size):
        outside = places[(places < -size) | (places >= size)].flat[0]
        raise IndexError(f"the result has {size} {axis}, numbered from 0, and none of them is {outside}")
    places = np.where(places < 0, places + size, places)
    return places if places.ndim else slice(int(places), int(places) + 1)


def _as_stored(array):
    """The array in a type that NumPy has itself: bfloat16 as float32, which holds the same numbers."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _check_is_result(method, result) -> None:
    if not isinstance(result, MarginResult):
        raise TypeError(f"{method} takes results of hmt_jax.measure_margins, got {type(result).__name__}")


def _dimensions(result) -> list[int] | None:
    return None if result.coordinates is None else [rows.shape[1] for rows in result.coordinates]


def _joined(first: str, second: str) -> str:
    return first if first == second else f"{first} | {second}"
