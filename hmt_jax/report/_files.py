"""Reading of stores, and writing of pages."""

import hashlib
import os
from collections.abc import Sequence

from hmt_jax import _disk, _paths
from hmt_jax.margins import MarginStore
from hmt_jax.report._content import Measurement, Progress


def html(
    measurements: Sequence[Measurement],
    *,
    title: str = "Margins",
    command: str = "",
    progress: Progress | None = None,
) -> str:
    """The page of some measurements, as HTML that needs no other file and no network.

    Margins that are 0 are not drawn, because the axis is logarithmic; tables and CSV have them.

    Args:
      measurements: at most ten, with different names. The first is the one that others are compared with.
      title: of the page.
      command: the command that makes the page again.
      progress: of a measurement that is still going on: the page says how far it is, and loads itself anew.

    Raises:
      ValueError: for no measurements, unless one is going on; for more than there are colours; and for equal names.
      ModuleNotFoundError: if a package that draws the page is missing.
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
    """
    missing = set(store.missing())
    there = [chunk for chunk in range(store.num_chunks) if chunk not in missing]
    result = store.read(partial=True)
    hashes = [str(store.chunk_size), *(f"{chunk} {store.image_sha256(chunk)}" for chunk in there)]
    has_hashes = not any(text.endswith(64 * "0") for text in hashes)
    known = store.attributes
    names = known.get("subspace_names") or [str(r) for r in range(len(result.margin))]
    return Measurement(
        name=os.path.splitext(os.path.basename(store.path.rstrip("/")))[0] if name is None else name,
        result=result,
        subspaces=names,
        num_images=store.num_images if missing else None,
        images_id=hashlib.sha256("\n".join(hashes).encode()).hexdigest() if has_hashes else None,
        classifier_id=known.get("classifier", {}).get("parameters_sha256"),
        no_pictures="no images were passed for the gallery",
        attributes={key: value for key, value in known.items() if key != "subspace_names"},
    )
