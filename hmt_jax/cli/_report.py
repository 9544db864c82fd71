"""Pages of stores and of runs: what the command line knows of them, as measurements of `hmt_jax.report`."""

import dataclasses
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import hmt_jax
from hmt_jax import _looks, report
from hmt_jax._extras import require
from hmt_jax._paths import reason, shown
from hmt_jax.cli import _specs
from hmt_jax.report._gallery import chosen

_EVERY = 30.0  # seconds from one page of a running measurement to the next
_SHARE = 0.05  # of the time, at most, that writing them takes
_TOLERANCE = 0.01  # of margins measured again, which other batches and devices round otherwise


def check_packages() -> None:
    """Raises ModuleNotFoundError if a page can't be made here."""
    require("a report", "report", "altair", "jinja2", "vl_convert", "PIL")


def write(
    out: str,
    sources: Mapping[str, hmt_jax.MarginStore | list[report.Measurement]],
    source_of: Callable[[Any], Any],
    command: str,
) -> None:
    """Writes the page of some stores, and of measurements from files.

    Args:
      out: the file.
      sources: by the names that stores have on the page. Measurements have names already, which these precede, for all
        of a source, if another one has a name of theirs.
      source_of: the model and the images of a store; raises ValueError if they are not known.
      command: that makes the page again.
    """
    names = [
        own
        for name, source in sources.items()
        for own in ([name] if isinstance(source, hmt_jax.MarginStore) else [each.name for each in source])
    ]
    _looks.check_number(len(names), "measurements")
    measurements = []
    for name, source in sources.items():
        if isinstance(source, hmt_jax.MarginStore):
            measurements.append(_with_pictures(source, name, source_of))
        else:
            prefix = f"{name}: " if any(names.count(each.name) > 1 for each in source) else ""
            measurements += [dataclasses.replace(each, name=f"{prefix}{each.name}") for each in source]
    report.write(out, measurements, title=", ".join(sources), command=command)


def _with_pictures(store: hmt_jax.MarginStore, name: str, source_of) -> report.Measurement:
    """The measurement in a store with its gallery, or with the reason why there is none."""
    found = _measurement(store, name)
    try:
        return dataclasses.replace(found, pictures=_pictures(store, found, source_of))
    except (ValueError, OSError, ImportError) as error:
        return dataclasses.replace(found, no_pictures=reason(error).rstrip("."))


def live(path: str, out: str) -> Callable[[int, int], None]:
    """A callback that writes the page of a store that is being measured, every half minute.

    Args:
      path: of the store, which need not be there yet.
      out: the file.
    """
    due = 0.0

    def show(num_done: int, num_pairs: int) -> None:
        nonlocal due
        start = time.monotonic()
        if start < due:
            return
        try:
            store = hmt_jax.MarginStore.open(path)
            is_empty = len(store.missing()) == store.num_chunks
            found = [] if is_empty else [dataclasses.replace(_measurement(store), no_pictures=_RUNNING)]
            progress = report.Progress(num_done, num_pairs)
            report.write(out, found, title=path, command=command(out, [path]), progress=progress)
        # A page is no reason to lose a measurement. The store may be out of reach for a while, or a chunk of another
        # process's share may be damaged, which only that process sets aside.
        except (OSError, ValueError) as error:
            warnings.warn(f"the page {shown(out)} can't be written ({reason(error)}); measuring goes on", stacklevel=1)
        end = time.monotonic()
        due = end + max(_EVERY, (end - start) / _SHARE)

    return show


_RUNNING = "the measurement is still going on"


def _measurement(store: hmt_jax.MarginStore, name: str | None = None) -> report.Measurement:
    """The measurement in a store."""
    found = report.of_store(store, name)
    known = store.attributes
    if "subspace_specs" not in known:
        return found
    texts = known["subspace_specs"]
    settings: dict[str, Any] = {"is_ordered": False, "command": _measure_command(store)}
    if _specs.are_windows(texts) and len(texts) == 1:
        subspaces, _ = _specs.subspaces_of(texts, tuple(known["data"]["image_shape"]))
        corners = np.array([subspace.corner for subspace in subspaces])
        settings |= report.of_windows(corners, subspaces[0].size) | {"subspaces": found.subspaces}
    return dataclasses.replace(found, **settings)


def _pictures(store, measurement: report.Measurement, source_of) -> list[report.Picture]:
    """Images of a store with their perturbations, which are found again if the store does not have them.

    Raises:
      ValueError, OSError, ImportError: if that can't be done; the message says why.
    """
    if measurement.num_images is not None:
        raise ValueError(_RUNNING)
    source = source_of(store)
    result = measurement.result
    wanted = chosen(result)
    images = source.images()
    numbers = sorted({n for _, n, _ in wanted})
    few = dict(zip(numbers, images.at(numbers, store), strict=True))
    subspaces, _ = _specs.subspaces_of(store.attributes["subspace_specs"], images.image_shape, source.features)
    if result.coordinates is not None:
        return report.pictures(result, subspaces, few, wanted)
    if "solver_spec" not in store.attributes:
        raise ValueError("the store has no perturbations: measure with --keep-coordinates")
    windows = sorted({r for r, _, _ in wanted})
    again = hmt_jax.measure_margins(
        source.classifier(images),
        np.stack([few[n] for n in numbers]),
        [subspaces[r] for r in windows],
        _specs.solver_of(store.attributes["solver_spec"]),
        keep_coordinates=True,
        precision=store.attributes["precision"],
    )
    before = result[windows, numbers]
    is_same = np.isclose(again.margin, before.margin, rtol=_TOLERANCE) | ~before.is_converged
    if (again.label != before.label).any() or not is_same[before.is_converged].mean() > 0.5:
        raise ValueError("the model is not what it was: its margins differ from those of the store")
    places = [(windows.index(r), numbers.index(n), rank) for r, n, rank in wanted]
    found = report.pictures(again, [subspaces[r] for r in windows], [few[n] for n in numbers], places)
    return [each._replace(subspace=r, image=n) for each, (r, n, _) in zip(found, wanted, strict=True)]


def _measure_command(store: hmt_jax.MarginStore) -> str:
    """The command that makes a store again."""
    known = store.attributes
    source, model = known["source"], known["source"]["model"]
    words = ["hmt", "measure", "--model", model["text"]]
    for option, value in (
        ("--weights", model["weights"]),
        ("--weights-key", model.get("weights_key")),
        ("--mean", model["mean"]),
        ("--std", model["std"]),
        ("--backend", None if model["backend"] == "auto" else model["backend"]),
        ("--images", source["images_text"]),
        ("--num", source["num"]),
        ("--resize", source["resize"]),
        ("--crop", source["crop"]),
        ("--data-dir", source["data_dir"]),
        ("--subspaces", known["subspace_specs"]),
        ("--features-of", source["features_text"]),
        ("--solver", known.get("solver_spec")),
        ("--precision", None if known["precision"] == "highest" else known["precision"]),
    ):
        if value is not None:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    words += ["--keep-coordinates"] if known["keep_coordinates"] else []
    return shlex.join([*words, "--out", store.path])


def command(out: str, paths: Sequence[str]) -> str:
    """The command that makes a page."""
    return shlex.join(["hmt", "report", *paths, "--out", out])
