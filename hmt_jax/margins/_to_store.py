"""Margins that are measured into a store, where an earlier measurement can be resumed."""

import concurrent.futures
import datetime
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.typing import ArrayLike

import hmt_jax
from hmt_jax._checks import check_callback, integer, text_of
from hmt_jax._images import Chunk, ImageSource, checked_for_range, cut
from hmt_jax._misc import warn
from hmt_jax.classifiers import Classifier
from hmt_jax.margins import _identity
from hmt_jax.margins._measure import measure_chunk
from hmt_jax.margins._plan import Plan
from hmt_jax.margins._result import MarginResult
from hmt_jax.margins._signs import Signs, report
from hmt_jax.margins._store import MarginStore, damaged_in
from hmt_jax.solvers import Solver, tight
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import dimension_of

# A chunk is what is lost if the process is killed, so it is not made as large as the memory of an accelerator allows.
_MOST_IMAGES = 4096


def measure_to_store(
    classifier: Classifier,
    images: ArrayLike | ImageSource | Iterable[Any],
    subspaces: Subspace | Sequence[Subspace],
    solver: Solver,
    path: str | os.PathLike[str],
    *,
    keep_coordinates: bool = False,
    precision: str = "highest",
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
    num_images: int | None = None,
    chunk_size: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    share: tuple[int, int] | None = None,
) -> MarginStore:
    """The store at a path, with the margins of every image in every subspace; chunks that are there are kept.

    Each chunk of images is written as soon as it has been measured. If the process is killed, the same call goes on
    from there, on other devices too. On the same CPU, the margins are those of an uninterrupted call, bit for bit.

    A store of another classifier, other images, other subspaces, another solver or other settings is refused. Images
    are compared by the SHA-256 of each chunk, so all of them are read; a stream of batches is compared as it is read.
    Classifiers are compared by their parameters, and by their code with all values that functions close over, if the
    versions of JAX and the platform are those of the first call. The code of a PyTorch module depends on its backend.
    `backend="auto"` may take another one in a later process, so pass the one that the first call took. Subspaces and
    solvers of your own are compared by their names and their values, but not by their code.

    Several processes, also on several machines, can measure one store at the same time. Each takes a share of the
    chunks, reads only the images of its share and the first image, except that a stream is read whole, and waits for no
    other process. If one is killed, a later start with any number of processes measures what is missing.

    Args:
      classifier, images, subspaces, solver, keep_coordinates, precision, batch_size, devices: as for
        `hmt_jax.measure_margins`.
      path: a folder, or an address that TensorStore knows, such as `gs://bucket/margins.zarr`.
      progress: called every few steps with the number of finished pairs of the share, including those found in the
        store, and the number of all pairs of the share; never for a share without chunks.
      num_images: the number of images, for an iterable of batches.
      chunk_size: images in a chunk of a new store; chosen for the devices if not given.
      attributes: anything else about the measurement that JSON can hold, for a new store, such as the files of the
        model and of the images.
      share: (i, n), to measure only chunks i, i + n, i + 2n and so on, as process i of n. If not given,
        `jax.process_index()` and `jax.process_count()`, which are 0 and 1 unless JAX runs in several processes.

    Returns:
      The store. Its `missing()` are the chunks that other processes have not measured yet.

    Raises:
      FileExistsError: if there is something else at the path.
      OSError: if the store can't be read or written. What was measured before is kept.
      ValueError: if the store is of another measurement, with a sentence that names the difference; if `num_images` is
        not the number of images; if `repr(solver)` holds an address, so that it can't be compared; for a share that
        is not (i, n) with i from 0 to n - 1; and as `measure_margins`.
      TypeError: as `measure_margins`.

    Warns:
      UserWarning: if files of the store are damaged. They are moved aside, and their chunks are measured again.
      As `measure_margins`, about the images measured in this call.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from hmt_jax import solvers, subspaces
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(16, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    >>> diagonal = subspaces.dct_diagonal((4, 4, 1), size=2, step=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = measure_to_store(classifier, images, diagonal, solvers.DeepFool(), f"{folder}/margins.zarr")
    ...     store.read().margin.shape
    (3, 5)
    """
    check_callback("progress", progress, "the numbers of finished pairs and of all pairs")
    share = _checked_share(share)
    plan = Plan(classifier, images, subspaces, solver, precision=precision, batch_size=batch_size, devices=devices)
    try:
        own = _identity_of(plan, _identity.kind_of(classifier), _number_of_images(plan, num_images), keep_coordinates)
        store = _store_for(plan, path, own, chunk_size, attributes or {}, share)
        _measure_missing(plan, store, keep_coordinates, progress, share)
    finally:
        plan.programs.drop()
    return store


def _checked_share(share: tuple[int, int] | None) -> tuple[int, int]:
    if share is None:
        return jax.process_index(), jax.process_count()
    is_pair = isinstance(share, tuple | list) and len(share) == 2
    number, count = (integer("share", each) for each in share) if is_pair else (0, 0)
    if not 0 <= number < count:
        raise ValueError(
            "share must be (i, n), the number of a process, from 0 to n - 1, and the number of processes, got "
            f"{text_of(share)}"
        )
    return number, count


def _of_share(store: MarginStore, share: tuple[int, int]) -> range:
    """The chunks of a share."""
    return range(share[0], store.num_chunks, share[1])


def _number_of_images(plan: Plan, num_images: int | None) -> int:
    known = plan.images.num_images
    if num_images is not None:
        num_images = integer("num_images", num_images, at_least=1)
    if known is not None and num_images not in (None, known):
        raise ValueError(f"num_images must be {known}, the number of images, got {num_images}")
    if (number := num_images if known is None else known) is None:
        raise ValueError("images is an iterable of unknown length: pass num_images=, the number of images in it")
    return number


def _identity_of(plan: Plan, kind: str, num_images: int, keep_coordinates: bool) -> dict[str, Any]:
    """The attributes that tell this measurement from others, in the order in which they are compared.

    The code of the classifier depends on the settings and on the dtype of images, so those come first.
    """
    images, solver = plan.images, repr(plan.solver)
    if _identity.ADDRESS.search(solver):
        raise ValueError(
            f"solver is written as {solver}, whose address differs in every process, so it can't be compared with "
            "that of a store: give its class a __repr__ that names all settings"
        )
    dtype = np.dtype(np.float32) if images.dtype == np.uint8 else jax.dtypes.canonicalize_dtype(images.dtype)
    with plan.in_use():
        classifier = _identity.of_classifier(plan.classifier, jax.ShapeDtypeStruct((1, *images.image_shape), dtype))
    dimensions: dict[int, int] = {}
    for places, _ in plan.groups:  # all of one structure, so one is traced
        dimensions |= dict.fromkeys(places, dimension_of(plan.subspaces[places[0]], images.image_shape))
    return {
        "data": {"num_images": num_images, "image_shape": list(images.image_shape), "dtype": str(images.dtype)},
        "precision": plan.precision,
        "keep_coordinates": keep_coordinates,
        "classifier": {"kind": kind, **classifier},
        "subspaces": [_identity.of_subspace(each, dimensions[r]) for r, each in enumerate(plan.subspaces)],
        "solver": solver,
    }


def _store_for(
    plan: Plan, path, own: Mapping[str, Any], chunk_size, attributes: Mapping[str, Any], share
) -> MarginStore:
    """A new store, or the one at the path if it holds this measurement."""
    if taken := sorted({*own, "runs"} & set(attributes)):
        raise ValueError(f"attributes must not be named {', '.join(taken)}, which the store sets: rename them")
    stored = {name: value for name, value in own.items() if name not in ("solver", "precision")}
    # One process of a start writes down the run of all of them, so that no two change the attributes at once.
    runs = [_run(plan, share)] if share[0] == 0 else []
    try:
        return MarginStore.create(
            path,
            num_subspaces=len(plan.subspaces),
            num_images=own["data"]["num_images"],
            chunk_size=min(plan.chunk_size, _MOST_IMAGES) if chunk_size is None else chunk_size,
            solver=own["solver"],
            precision=own["precision"],
            dtype=_dtype_of(own),
            dimensions=[each["dimension"] for each in own["subspaces"]] if own["keep_coordinates"] else None,
            attributes={**attributes, **stored, "runs": runs},
        )
    except FileExistsError as error:
        try:
            store = MarginStore.open(path)
        except FileNotFoundError:
            raise error from None
    _check_is_same(store, own, "choose another path to measure these")
    if damaged := store.set_damaged_aside(_of_share(store, share)):
        warn(
            f"{store.path} had {damaged_in(damaged)}: they are now in {store.path}-damaged, and their chunks are "
            "measured again"
        )
    if runs and store.missing():
        store.set_attributes({"runs": [*store.attributes["runs"], *runs]})
    return store


def _dtype_of(own: Mapping[str, Any]) -> Any:
    """The dtype of margins: that of images and logits, in half precision as float32."""
    is_wide = "float64" in (own["data"]["dtype"], own["classifier"]["dtype"]) and jax.config.values["jax_enable_x64"]
    return np.float64 if is_wide else np.float32


def _run(plan: Plan, share: tuple[int, int]) -> dict[str, Any]:
    """The time, the versions, the devices and the number of processes of a call, as JSON can hold them."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hmt_jax": hmt_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "devices": [f"{device.device_kind}" for device in plan.where.devices],
        "num_processes": share[1],
    }


def check_is_of(store: MarginStore, classifier: Classifier, images: Any, subspaces: Sequence[Subspace]) -> None:
    """Raises ValueError if a store is of another classifier, other subspaces, or images of another shape or number."""
    known = store.attributes
    settings: dict[str, Any] = {"precision": known["precision"], "batch_size": 1, "devices": jax.local_devices()[:1]}
    plan = Plan(classifier, images, subspaces, tight("quick"), **settings)
    try:
        number = _number_of_images(plan, None)
        own = _identity_of(plan, _identity.kind_of(classifier), number, known["keep_coordinates"])
    finally:
        plan.programs.drop()
    del own["solver"]
    _check_is_same(store, own, "put back what was measured")


def _check_is_same(store: MarginStore, own: Mapping[str, Any], remedy: str) -> None:
    """Raises ValueError if a store is of another measurement; it names the first difference."""
    known = store.attributes
    if not {*own, "runs"} <= set(known):
        raise ValueError(f"{store.path} was not made by measure_to_store, which can't complete it: choose another path")
    # Code of other versions can't be compared. If code can be compared, its name does not matter.
    is_comparable = known["classifier"]["code_of"] == own["classifier"]["code_of"]
    ignored = ("code_of", "kind" if is_comparable else "code_sha256")
    classifier = {name: value for name, value in own["classifier"].items() if name not in ignored}
    for name, here in {**own, "classifier": classifier}.items():
        if difference := _difference(known[name], here):
            if name == "classifier" and difference.startswith("backend"):
                remedy = f"make the classifier with backend={known[name]['backend']!r} to go on, or {remedy}"
            raise ValueError(f"{store.path} holds margins of {_OTHERS[name]}{difference}; {remedy}")


_OTHERS = {
    "data": "other images: ",
    "precision": "other settings: precision ",
    "keep_coordinates": "other settings: keep_coordinates ",
    "classifier": "another classifier: ",
    "subspaces": "other subspaces: ",
    "solver": "another solver: ",
}


def _difference(there: Any, here: Any) -> str | None:
    """The first of the values that differ, for a message; None if all are the same."""
    if there == here:
        return None
    if isinstance(here, list) and isinstance(here[0], dict):
        there, here = _numbered_parts(there), _numbered_parts(here)
    if isinstance(here, dict):
        differences = ((name, _difference(there.get(name), value)) for name, value in here.items())
        return next((f"{name} {difference}" for name, difference in differences if difference), None)
    values = [re.sub("^([0-9a-f]{8})[0-9a-f]{56}$", r"\1", str(each)) for each in (there, here)]
    return f"{values[0]} there, {values[1]} here"


def _numbered_parts(subspaces: Sequence[Any]) -> dict[str, Any]:
    return {"number": len(subspaces), **{f"subspace {r}": each for r, each in enumerate(subspaces)}}


def _measure_missing(plan: Plan, store: MarginStore, keep_coordinates: bool, progress, share: tuple[int, int]) -> None:
    own = frozenset(_of_share(store, share))
    missing = own.intersection(store.missing())
    measured = own - missing
    is_stream = plan.images.num_images is None
    if not is_stream:  # a stream can be read only once, so its images are compared on the way
        for number, chunk in _numbered(plan, store, measured):
            _check_images(store, number, chunk)
    num_pairs = len(plan.subspaces) * sum(_length(store, number) for number in own)
    num_done = len(plan.subspaces) * sum(_length(store, number) for number in measured)
    report_progress = _of_all(progress, num_pairs)
    report_progress(num_done)
    signs, num_read = Signs(), 0
    # A chunk is written while the next one is measured.
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="hmt_jax-write") as writer:
        written: concurrent.futures.Future | None = None
        chunks = _numbered(plan, store, None if is_stream else missing, are_checked=True)
        for number, chunk in chunks:
            num_read += chunk.num_images
            if number >= store.num_chunks or chunk.num_images != _length(store, number):
                next(chunks, None)  # if an error has ended the stream, it is raised here
                break
            if number in measured:
                _check_images(store, number, chunk)
            if number not in missing:
                continue
            result, signs_of_chunk = _measure(plan, chunk, keep_coordinates, _after(report_progress, num_done))
            signs, num_done = signs.plus(signs_of_chunk), num_done + result.margin.size
            if written is not None:
                written.result()
            written = writer.submit(store.write, number, result, _identity.of_images(chunk.own))
        if written is not None:
            written.result()
    if is_stream and num_read != store.num_images:
        found = f"at least {num_read}" if num_read > store.num_images else f"only {num_read}"
        raise ValueError(f"images has {found} images, but num_images is {store.num_images}: pass their number")
    if missing:
        report(signs)


def _numbered(
    plan: Plan, store: MarginStore, numbers: frozenset[int] | None, *, are_checked: bool = False
) -> Iterator[tuple[int, Chunk]]:
    """The images in the chunks of the store, with their numbers: chunks of the given numbers, or all if None."""
    order = itertools.count() if numbers is None else sorted(numbers)
    chunks = plan.images.chunks(store.chunk_size, numbers)
    return zip(order, checked_for_range(chunks) if are_checked else chunks, strict=False)


def _length(store: MarginStore, number: int) -> int:
    images = store.images_of(number)
    return images.stop - images.start


def _check_images(store: MarginStore, number: int, chunk: Chunk) -> None:
    """Raises ValueError if a chunk of images is not the one that was measured."""
    if store.image_sha256(number) != _identity.of_images(chunk.own):
        images = store.images_of(number)
        raise ValueError(
            f"{store.path} holds margins of other images: some of images {images.start} to {images.stop - 1} differ; "
            "choose another path to measure these"
        )


def _measure(plan: Plan, chunk: Chunk, keep_coordinates: bool, progress) -> tuple[MarginResult, Signs]:
    """The result of a chunk of the store, which may hold more images than the devices should take at a time."""
    results, signs, num_done = [], Signs(), 0
    parts = [chunk] if len(chunk.images) <= plan.chunk_size else cut(chunk.own, plan.chunk_size)
    with plan.in_use():
        for part in parts:
            result, signs_of_part = measure_chunk(plan, part, keep_coordinates, _after(progress, num_done))
            results.append(result)
            signs, num_done = signs.plus(signs_of_part), num_done + result.margin.size
    return MarginResult.concatenate(results), signs


def _of_all(progress, num_pairs: int) -> Callable[[int], None]:
    # A share without pairs has no progress, whose part of them would be 0 / 0.
    return lambda number: None if progress is None or not num_pairs else progress(int(number), num_pairs)


def _after(progress: Callable[[int], None], num_done: int) -> Callable[[int], None]:
    """A callback that counts on from `num_done`."""
    return lambda number: progress(num_done + int(number))
