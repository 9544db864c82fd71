"""Reading of stores, writing of pages, and measurements in files."""

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hmt_jax import _disk, _npy, _paths
from hmt_jax.margins import MarginResult, MarginStore
from hmt_jax.margins._result import from_arrays, to_arrays
from hmt_jax.margins._store import UNKNOWN
from hmt_jax.report._content import Claim, Measurement, Picture, Progress, plain

_OPTIONAL, _OF_PICTURES = ("corners", "bounds"), ("original", "perturbation")  # arrays
_APART = ("result", "pictures", *_OPTIONAL)  # fields that JSON does not hold


def html(
    measurements: Sequence[Measurement],
    *,
    title: str = "Margins",
    command: str = "",
    progress: Progress | None = None,
) -> str:
    """The page of some measurements, as HTML that needs no other file and works offline.

    Margins that are 0 are not drawn, because the axis is logarithmic; tables and CSV have them.

    Args:
      measurements: at most ten, with different names. The first is the one that others are compared with.
      title: of the page.
      command: the command that makes the page again.
      progress: of a measurement that is still going on: the page says how far it is, and loads itself anew.

    Raises:
      ValueError: for no measurements, unless one is going on; for more than there are colours; and for equal names.
      ModuleNotFoundError: if a package that draws the page is missing.

    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> result = hmt_jax.measure_margins(classifier, images, hmt_jax.subspaces.full((2, 2, 1)))
    >>> page = html([Measurement(name="linear", result=result, subspaces=["whole space"])], title="A linear classifier")
    >>> "<h1><bdi>A linear classifier</bdi></h1>" in page
    True
    """
    from hmt_jax.report import _page  # which takes a second to import

    return _page.page(measurements, title, command, progress)


def write(
    path: str | os.PathLike[str],
    measurements: Sequence[Measurement],
    *,
    title: str = "Margins",
    command: str = "",
    progress: Progress | None = None,
) -> None:
    """Writes the page of some measurements to one file; a former page is replaced once the new one is complete.

    Args:
      path: of the file, such as `report.html`.
      measurements, title, command, progress: as for `hmt_jax.report.html`.

    Raises:
      OSError: if the file can't be written.
      ValueError, ModuleNotFoundError: as `hmt_jax.report.html`.

    >>> import os, tempfile
    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> result = hmt_jax.measure_margins(classifier, images, hmt_jax.subspaces.full((2, 2, 1)))
    >>> path = os.path.join(tempfile.mkdtemp(), "report.html")
    >>> write(path, [Measurement(name="linear", result=result, subspaces=["whole space"])])
    >>> os.listdir(os.path.dirname(path))
    ['report.html']
    """
    path = _paths.expand("path", path)
    page = html(measurements, title=title, command=command, progress=progress)
    _disk.write(path, page.encode("utf-8", errors="replace"))


def of_store(store: MarginStore, name: str | None = None) -> Measurement:
    """The measurement in a store, with what it has of the images so far.

    A store does not say what its subspaces are: add `axis` and `corners` with `dataclasses.replace`.

    Args:
      store: a store, of which at least one chunk has been measured.
      name: a name for the page; that of the folder if not given.

    Raises:
      ValueError: if nothing has been measured, or chunks are damaged.
      OSError: if the store can't be read.

    >>> import tempfile
    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> whole = hmt_jax.subspaces.full((2, 2, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     solver = hmt_jax.solvers.DeepFool()
    ...     store = hmt_jax.measure_to_store(classifier, images, whole, solver, f"{folder}/linear.zarr")
    ...     of_store(store).name
    'linear'
    """
    missing = set(store.missing())
    there = [chunk for chunk in range(store.num_chunks) if chunk not in missing]
    result = store.read(partial=True)
    ids = [digest for chunk in there for digest in store.image_sha256(chunk)]
    known = store.attributes
    names = known.get("subspace_names") or [str(r) for r in range(len(result.margin))]
    return Measurement(
        name=os.path.splitext(os.path.basename(store.path.rstrip("/")))[0] if name is None else name,
        result=result,
        subspaces=names,
        num_images=store.num_images if missing else None,
        image_ids=ids if UNKNOWN not in ids else (),
        classifier_id=known.get("classifier", {}).get("parameters_sha256"),
        no_pictures="no images were passed for the gallery",
        attributes={key: value for key, value in known.items() if key != "subspace_names"},
    )


def save(path: str | os.PathLike[str], measurements: Sequence[Measurement]) -> None:
    """Writes measurements to one npz file, from which `load` reads them, and `hmt report` makes a page.

    An existing file is replaced only once the new one is complete. Coordinates of perturbations are left out.

    Args:
      path: of the file. In a folder, `hmt report FOLDER` finds it by the name `measurements.npz`.
      measurements: any; arrays among their attributes become lists, and what JSON can't hold becomes text.

    Raises:
      OSError: if the file can't be written.

    >>> import os, tempfile
    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (6, 2, 2, 1))
    >>> result = hmt_jax.measure_margins(classifier, images, hmt_jax.subspaces.full((2, 2, 1)))
    >>> path = os.path.join(tempfile.mkdtemp(), "measurements.npz")
    >>> save(path, [Measurement(name="linear", result=result, subspaces=["whole space"])])
    >>> [measurement.name for measurement in load(path)]
    ['linear']
    """
    _disk.write(_paths.expand("path", path), to_bytes(measurements))


def to_bytes(measurements: Sequence[Measurement]) -> bytes:
    """The content of the file that `save` writes.

    >>> to_bytes([]).startswith(b"PK")  # a zip file, as npz files are
    True
    """
    arrays: dict[str, Any] = {}
    described = []
    for m, each in enumerate(measurements):
        parts: dict[str, Any] = to_arrays(dataclasses.replace(each.result, coordinates=None))
        parts |= {name: value for name in _OPTIONAL if (value := getattr(each, name)) is not None}
        for number, picture in enumerate(each.pictures):
            parts |= {f"{field}_{number}": getattr(picture, field) for field in _OF_PICTURES}
        arrays |= {f"{m}/{name}": array for name, array in parts.items()}
        fields = {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
        pictures = [
            {field: value for field, value in picture._asdict().items() if field not in _OF_PICTURES}
            for picture in each.pictures
        ]
        described.append(
            {**{name: value for name, value in fields.items() if name not in _APART}, "pictures": pictures}
        )
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, measurements=json.dumps(described, default=plain), **arrays)
    return content.getvalue()


def load(path: str | os.PathLike[str]) -> list[Measurement]:
    """The measurements in a file that `save` wrote.

    Raises:
      OSError: if the file can't be read.
      ValueError: if `save` did not write the file.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "measurements.npz")
    >>> save(path, [])
    >>> load(path)
    []
    """
    file = _paths.expand("path", path)
    try:
        stored = _npy.read_npz(file)
        described = json.loads(str(stored["measurements"]))
        return [_measurement(each, stored, f"{m}/") for m, each in enumerate(described)]
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # of arrays that are not those of `save`
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else _paths.reason(error)
        raise ValueError(f"{_paths.shown(file)} is not a file of hmt_jax.report.save: {reason}") from error


def _measurement(described: dict[str, Any], stored: dict[str, np.ndarray], prefix: str) -> Measurement:
    parts: dict[str, Any] = {
        name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)
    }
    pictures = [
        Picture(**each, **{field: parts[f"{field}_{n}"] for field in _OF_PICTURES})
        for n, each in enumerate(described["pictures"])
    ]
    return Measurement(
        **{
            **described,
            "result": MarginResult(**from_arrays(parts)),
            "claims": [Claim(*each) for each in described["claims"]],
            "pictures": pictures,
            **{name: parts.get(name) for name in _OPTIONAL},
        }
    )
