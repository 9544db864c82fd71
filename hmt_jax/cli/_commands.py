"""The commands of `hmt`: their arguments, and what they do.

Packages that take long to import are imported when they are needed, so that help and usage appear at once.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

import hmt_jax
from hmt_jax import _disk, _progress
from hmt_jax._extras import require
from hmt_jax._paths import expand, shown
from hmt_jax.cli import _processes, _specs
from hmt_jax.cli._models import Model

if TYPE_CHECKING:
    from hmt_jax.cli._images import Images


def option(metavar: str, help_text: str, **settings: Any) -> Any:
    """An option: the placeholder of its value, and its help. `hint=None` adds the default to the help."""
    return arg(metavar=metavar, help=help_text, help_behavior_hint=settings.pop("hint", ""), **settings)


def parsed_by(parse: Callable[[list[str]], Any], nargs: Any) -> PrimitiveConstructorSpec:
    """An argument that `parse` makes of what was typed, because tyro's own error messages name types of Python."""
    return PrimitiveConstructorSpec(nargs, "", parse, lambda _: True, lambda value: [str(value)])


def _whole_number(least: int) -> PrimitiveConstructorSpec:
    def parse(texts: list[str]) -> int:
        if not texts[0].isdecimal() or int(texts[0]) < least:
            raise ValueError(f"expected a whole number, at least {least}, got {texts[0]!r}")
        return int(texts[0])

    return parsed_by(parse, 1)


def _channels(texts: list[str]) -> tuple[float, ...]:
    with contextlib.suppress(ValueError):
        if numbers := tuple(map(float, texts)):
            return numbers
    raise ValueError(f"expected a number for each channel, such as 0.5 0.5 0.5, got {' '.join(texts)!r}")


def _specifications(texts: list[str]) -> tuple[str, ...]:
    if not texts:
        raise ValueError(f"expected at least one of {_specs.SUBSPACES}")
    return tuple(texts)


_COUNT, _NUMBER, _CHANNELS = _whole_number(1), _whole_number(0), parsed_by(_channels, "*")
DATA_DIR = option("DIR", "Folder of prepared data sets. (default: TFDS_DATA_DIR, or the folder of TensorFlow Datasets)")
CACHE_DIR = option("DIR", "Folder to keep compiled programs in. (default: one in the user's cache)")
_JSON = option("", "Print JSON instead of a table.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The arguments that all commands take."""

    debug: Annotated[bool, option("", "Show the traceback of an error.")] = False

    def run(self) -> None:
        """Runs the command."""
        raise NotImplementedError

    def remedy(self, command: str) -> str:
        """The advice after the command was stopped; `command` is what was typed."""
        return f"start again with: {command}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Command):
    """Measure the margins of a model on images, and write them to a store. An unfinished store is resumed.

    For example,
      hmt measure --model lenet --weights lenet.pth --mean 0.1307 --std 0.3081 --images mnist:test[:1000] --out m.zarr
      hmt measure --model net.py:make --images photos/ --resize 256 --crop 224 --out m.zarr
      hmt measure --model net.pt2 --images images.npy --subspaces dct-diagonal:8:2 full --solver deepfool --out m.zarr
    """

    model: Annotated[
        str,
        option(
            "MODEL",
            "A network of `hmt models`, with --weights; a checkpoint of hmt_jax; file.py:function or "
            "package.module:function that returns a classifier or a PyTorch module; a .pt2 file of torch.export; or "
            "a file of hmt_jax.save_exported.",
        ),
    ]
    images: Annotated[
        str,
        option("IMAGES", "A folder of images, a .npy or .npz file, or a data set with its split: mnist:test[:1000]."),
    ]
    out: Annotated[str, option("STORE", "Folder of the store, or an address such as gs://bucket/m.zarr.")]
    weights: Annotated[str | None, option("FILE", "Weights for a network of `hmt models`.")] = None
    weights_key: Annotated[
        str | None,
        option("KEY", "Key of the weights in that file, such as state_dict_ema, if it holds several sets."),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        _CHANNELS,
        option("X [X ...]", "Mean to subtract from pixels in [0, 1]: one number for each channel."),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        _CHANNELS,
        option("X [X ...]", "Standard deviation to divide the result by: one number for each channel."),
    ] = None
    subspaces: Annotated[
        tuple[str, ...],
        parsed_by(_specifications, "*"),
        option(
            "SPEC [SPEC ...]",
            f"One or several of {_specs.SUBSPACES}. (default: dct-diagonal of size 8, or 16 from 128 pixels on)",
        ),
    ] = ()
    features_of: Annotated[
        str | None,
        option(
            "IMAGES",
            "The images of principal-components and class-means, such as mnist:train: as for --images, with classes "
            "from subfolders, or an array labels in an .npz file.",
        ),
    ] = None
    solver: Annotated[
        str,
        option(
            "SOLVER", f"One of {_specs.SOLVERS}; settings follow as in deepfool:max_steps=50 or tight:fast.", hint=None
        ),
    ] = "tight:quick"
    num: Annotated[
        int | None,
        _COUNT,
        option("N", "Measure only the first N images: of a folder, those whose subfolders and names come first."),
    ] = None
    resize: Annotated[int | None, _COUNT, option("N", "Resize the shorter side of images to N pixels.")] = None
    crop: Annotated[int | None, _COUNT, option("N", "Cut a square of N pixels out of the middle.")] = None
    backend: Annotated[
        Literal["auto", "torchax", "callback"],
        option("BACKEND", "How PyTorch modules run: auto, torchax or callback.", hint=None),
    ] = "auto"
    keep_coordinates: Annotated[bool, option("", "Store the perturbations as well.")] = False
    precision: Annotated[
        Literal["highest", "default"],
        option("PRECISION", "Precision of float32 matrix products: highest or default.", hint=None),
    ] = "highest"
    batch_size: Annotated[
        int | None,
        _COUNT,
        option("N", "Pairs of an image and a subspace that a device computes at a time. (default: chosen for it)"),
    ] = None
    chunk_size: Annotated[
        int | None,
        _COUNT,
        option("N", "Images in a chunk of a new store; a stop loses only the unfinished chunk. (default: chosen)"),
    ] = None
    coordinator: Annotated[
        str | None,
        option(
            "HOST:PORT",
            "Where the processes that measure one store meet: a free port on the machine of process 0. (default: found "
            "by JAX on Cloud TPU, and under SLURM, Open MPI and Kubernetes)",
        ),
    ] = None
    num_processes: Annotated[
        int | None,
        _COUNT,
        option("N", "Number of processes that measure one store. Without --coordinator, they need no network."),
    ] = None
    process_id: Annotated[
        int | None,
        _NUMBER,
        option("I", "Number of this process, from 0: it measures chunks I, I + N, I + 2N, ..."),
    ] = None
    data_dir: Annotated[str | None, DATA_DIR] = None
    cache_dir: Annotated[str | None, CACHE_DIR] = None
    report: Annotated[
        str | None, option("FILE", "Write a page as hmt report does, too, and update it every half minute.")
    ] = None
    json: Annotated[bool, _JSON] = False

    def run(self) -> None:
        if not self.out:
            raise ValueError("--out is empty: name the folder of the store, such as --out margins.zarr")
        if self.report is not None:
            _check_page(self.report)
        solver = _specs.solver_of(self.solver)
        share = _processes.join(self.coordinator, self.num_processes, self.process_id)
        hmt_jax.cache_programs(self.cache_dir)
        source = self.source
        images = source.images()
        texts = [*map(_specs.absolute, self.subspaces)] or [_specs.default_subspaces(images.image_shape)]
        if self.features_of is not None and not _specs.need_features(texts):
            raise ValueError("--features-of is for principal-components and class-means: leave it out")
        subspaces, names = _specs.subspaces_of(texts, images.image_shape, source.features)
        classifier = source.classifier(images)
        if isinstance(classifier, hmt_jax.models.TorchClassifier):
            # Remembered, because a later call may find the other backend faster, whose margins are rounded differently.
            backend = classifier.backend_for(images.image_shape)
            classifier = dataclasses.replace(classifier, backend=backend)
            source = dataclasses.replace(source, model=dataclasses.replace(source.model, backend=backend))
        with _progress.bar("pairs") as show:
            progress = show if self.report is None else _both(show, self.out, self.report)
            store = hmt_jax.measure_to_store(
                classifier,
                images.read(),
                subspaces,
                solver,
                self.out,
                keep_coordinates=self.keep_coordinates,
                precision=self.precision,
                batch_size=self.batch_size,
                progress=progress,
                num_images=images.num_images,
                chunk_size=self.chunk_size,
                attributes={
                    "source": dataclasses.asdict(source),
                    "images": images.description,
                    "image_names": list(images.names),
                    "subspace_specs": texts,
                    "subspace_names": names,
                    "solver_spec": self.solver,
                },
                share=share,
            )
        missing = store.missing()
        is_empty = len(missing) == store.num_chunks  # of more processes than chunks, some have no share
        if self.report is not None and not is_empty:
            _write_page(self.report, [store.path])
        if share[1] > 1 and missing and not self.json:
            chunks = f"{len(missing)} of {store.num_chunks} chunks"
            print(f"process {share[0]} of {share[1]} has measured its share of {store.path}; {chunks} are missing")
        elif is_empty:
            _print_json({**_about(store, 0), "summary": None})
        else:
            Show(store=store.path, json=self.json).run()

    @property
    def source(self) -> "Source":
        """The model and the images."""
        place, colon, function = self.model.rpartition(":")
        is_program = place.endswith(".py")
        text = _absolute(place) + colon + function if is_program else _absolute(self.model)
        backend = _backend_in(self.out) if self.backend == "auto" else self.backend
        model = Model(text, self.weights and _absolute(self.weights), self.weights_key, self.mean, self.std, backend)
        data_dir = self.data_dir and _absolute(self.data_dir)
        features = self.features_of and _absolute(self.features_of)
        return Source(model, _absolute(self.images), self.num, self.resize, self.crop, data_dir, features)

    def remedy(self, command: str) -> str:
        path = os.path.expanduser(self.out)
        if not os.path.exists(path):  # or it is in a bucket, which may be out of reach
            return f"go on with: {command}"
        with contextlib.suppress(OSError, ValueError):
            store = hmt_jax.MarginStore.open(path)
            missing = [store.images_of(number) for number in store.missing()]
            measured = store.num_images - sum(images.stop - images.start for images in missing)
            return f"{measured} of {store.num_images} images are in {self.out}; go on with: {command}"
        return f"go on with: {command}"


@dataclasses.dataclass(frozen=True)
class Source:
    """The model and the images of a measurement, as a store remembers them."""

    model: Model
    images_text: str
    num: int | None
    resize: int | None
    crop: int | None
    data_dir: str | None
    features_text: str | None

    def images(self) -> "Images":
        from hmt_jax.cli import _images

        found = _images.load(self.images_text, resize=self.resize, crop=self.crop, data_dir=self.data_dir)
        return found.first(self.num)

    @property
    def features(self) -> "Callable[[], Images] | None":
        """A function that returns the images of principal components and class means, or None."""
        from hmt_jax.cli import _images

        options: Any = {"resize": self.resize, "crop": self.crop, "data_dir": self.data_dir}
        text = self.features_text
        return None if text is None else lambda: _images.load(text, **options, option="--features-of")

    def classifier(self, images: "Images") -> Any:
        return self.model.load(images.image_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(Command):
    """Show the margins in a store as a table: medians with intervals, and counts of searches that found no margin."""

    store: Annotated[Positional[str], option("STORE", "A store that hmt measure wrote.")]
    json: Annotated[bool, _JSON] = False

    def run(self) -> None:
        store = _opened(self.store)
        missing = store.missing()
        if len(missing) == store.num_chunks:
            raise ValueError(
                f"nothing is measured in {store.path} yet: type the hmt measure command that began it again"
            )
        result = store.read(partial=True)
        summary = hmt_jax.statistics.summarize(result, names=_names_of(store))
        if self.json:
            _print_json({**_about(store, result.margin.shape[1]), "summary": summary})
            return
        known = [store.attributes[key] for key in ("images", "solver") if key in store.attributes]
        print(f"{store.path}: {', '.join([*known, *store.attributes.get('subspace_specs', ())])}")
        print(summary)
        if missing:
            print(
                f"{len(missing)} of {store.num_chunks} chunks are not measured yet: the table covers "
                f"{result.margin.shape[1]} of {store.num_images} images"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write the margins in a store to a file, one row for each subspace and image.

    Images are numbered from 0, in the order of their names for a folder, and are named as well.

    For example,
      hmt export m.zarr margins.csv
      hmt export m.zarr margins.parquet
    """

    store: Annotated[Positional[str], option("STORE", "A store that hmt measure wrote.")]
    file: Annotated[Positional[str], option("FILE", "The file to write: .csv or .parquet.")]

    def run(self) -> None:
        suffix = os.path.splitext(self.file)[1].lower()
        if suffix not in (".csv", ".parquet"):
            raise ValueError(f"the file must end in .csv or .parquet, got {self.file!r}")
        require(f"export to {suffix}", "report", "pandas", *(["pyarrow"] if suffix == ".parquet" else []))
        store = _opened(self.store)
        frame = _whole(store).to_dataframe()
        names = _names_of(store)
        frame.insert(1, "subspace_name", [names[r] for r in frame["subspace"]])
        if files := store.attributes.get("image_names"):
            frame.insert(3, "image_name", [files[n] for n in frame["image"]])
        path = expand("FILE", self.file)
        content = frame.to_csv(index=False).encode() if suffix == ".csv" else frame.to_parquet(index=False)
        _disk.write(path, content)
        print(f"{len(frame)} rows in {path}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot(Command):
    """Draw the margins in one or several stores.

    For example,
      hmt plot m.zarr margins.png
      hmt plot standard.zarr robust.zarr compared.pdf
    """

    paths: Annotated[Positional[tuple[str, ...]], option("STORE [STORE ...] PICTURE", "The stores, then the picture.")]

    def run(self) -> None:
        require("plot", "plots", "matplotlib")
        from hmt_jax import plots

        if len(self.paths) < 2:
            raise ValueError("plot needs at least one store and the picture to write, such as: hmt plot m.zarr m.png")
        *paths, picture = self.paths
        suffix = os.path.splitext(picture)[1].lower()
        if suffix not in (".png", ".pdf", ".svg"):
            raise ValueError(f"the last path must be the picture, ending in .png, .pdf or .svg, got {picture!r}")
        stores = [_opened(path) for path in paths]
        ticks = _names_of(stores[0])
        axis = _specs.axis_of(stores[0].attributes.get("subspace_specs", ()))
        if any(_names_of(store) != ticks for store in stores):
            raise ValueError("the stores have different subspaces: draw them one by one")
        if len(stores) == 1:
            axes = plots.margin_distribution(_whole(stores[0]), title=_title(stores[0]), ticks=ticks, xlabel=axis)
        else:
            names = dict(zip(_distinct(paths), stores, strict=True))
            results = {name: _whole(store) for name, store in names.items()}
            axes = plots.compare(results, ticks=ticks, xlabel=axis)
        content = io.BytesIO()
        figure: Any = axes.figure
        figure.savefig(content, format=suffix[1:])
        _disk.write(expand("PICTURE", picture), content.getvalue())
        print(picture)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make a page of the margins in one or several stores or runs: one HTML file, which works offline.

    For example,
      hmt report m.zarr --out report.html
      hmt report standard.zarr robust.zarr --out compared.html
      hmt report results/mnist_lenet m.zarr --out compared.html
    """

    paths: Annotated[
        Positional[tuple[str, ...]],
        option(
            "STORE_OR_RUN [...]",
            "Stores that hmt measure wrote, folders of runs of experiments, and files of hmt_jax.report.save.",
        ),
    ]
    out: Annotated[str, option("FILE", "The page to write, ending in .html.")]
    cache_dir: Annotated[str | None, CACHE_DIR] = None

    def run(self) -> None:
        if not self.paths:
            raise ValueError("report needs at least one store or run, such as: hmt report m.zarr --out report.html")
        _check_page(self.out)
        hmt_jax.cache_programs(self.cache_dir)
        _write_page(self.out, self.paths)
        print(self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Measure some images of a store again with a tighter solver, and show how much smaller the margins become."""

    store: Annotated[Positional[str], option("STORE", "A store that hmt measure wrote.")]
    solver: Annotated[str, option("SOLVER", "The solver to measure with.", hint=None)] = "tight:normal"
    num: Annotated[
        int, _COUNT, option("N", "Measure N images, chosen at random, the same ones every time.", hint=None)
    ] = 20
    json: Annotated[bool, _JSON] = False
    cache_dir: Annotated[str | None, CACHE_DIR] = None

    def run(self) -> None:
        import numpy as np

        from hmt_jax.margins._to_store import check_is_of

        solver = _specs.solver_of(self.solver)
        hmt_jax.cache_programs(self.cache_dir)
        store = _opened(self.store)
        source = _source_of(store)
        result = _whole(store)
        number = min(self.num, store.num_images)
        images = source.images()
        # Not the first ones: a folder is sorted by class.
        chosen = sorted(np.random.default_rng(0).choice(store.num_images, number, replace=False).tolist())
        pixels = images.at(chosen, store)
        texts = store.attributes["subspace_specs"]
        subspaces, names = _specs.subspaces_of(texts, images.image_shape, source.features)
        classifier = source.classifier(images)
        check_is_of(store, classifier, images.read(), subspaces)
        with _progress.bar("pairs") as progress:
            again = hmt_jax.measure_margins(classifier, pixels, subspaces, solver, progress=progress)
        before = result[:, chosen]
        if (before.label != again.label).any():  # the code of other versions of JAX can't be compared
            raise ValueError(f"the model or the images of {store.path} have changed: their labels are different now")
        comparison = hmt_jax.statistics.compare(before, again, names=names)
        if self.json:
            _print_json({"store": store.path, "num_images": number, "solver": again.solver, "comparison": comparison})
            return
        print(
            f"a: {store.path}, by {before.solver}; b: {number} of its images, chosen at random, measured again by "
            f"{again.solver}"
        )
        print(comparison)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models(Command):
    """List the networks that --model knows by name."""

    json: Annotated[bool, _JSON] = False

    def run(self) -> None:
        print(json.dumps(list(hmt_jax.models.names())) if self.json else "\n".join(hmt_jax.models.names()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Command):
    """Download a data set, and prepare it for reading."""

    name: Annotated[Positional[str], option("DATA", "One of cifar10, digits and mnist.")]
    data_dir: Annotated[str | None, DATA_DIR] = None

    def run(self) -> None:
        print(hmt_jax.data.prepare(self.name, self.data_dir or None))


COMMANDS: tuple[type[Command], ...] = (Measure, Show, Export, Plot, Report, Audit, Models, Prepare)


def _check_page(out: str) -> None:
    """Raises an error if the page can't be made or has no name for one, before any work."""
    from hmt_jax.cli import _report

    if os.path.splitext(out)[1].lower() not in (".html", ".htm"):
        raise ValueError(f"the page must end in .html, got {out!r}")
    path = os.path.abspath(expand("the page", out))
    if os.path.isdir(path):
        raise ValueError(f"{shown(out)} is a folder, and the page is a file: name another")
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK):
        state = "can't be written" if os.path.isdir(folder) else "is not there"
        raise ValueError(f"the folder {shown(folder)} of the page {state}: make it, or name another")
    _report.check_packages()


def _write_page(out: str, paths: Sequence[str]) -> None:
    """Writes the page of some stores, runs and files of measurements."""
    from hmt_jax.cli import _report

    sources = [_margins_at(path) for path in paths]
    names = _distinct(list(paths))
    _report.write(
        out,
        dict(zip(names, sources, strict=True)),
        _source_of,
        _report.command(out, [_absolute(path) for path in paths]),
    )


def _margins_at(path: str) -> Any:
    """The store at a path, in which something is measured, or the measurements of a run or in a file."""
    from hmt_jax import report

    file = os.path.join(os.path.expanduser(path), "measurements.npz")
    if os.path.isfile(file):
        return report.load(file)
    if os.path.splitext(path)[1].lower() == ".npz":
        return report.load(path)
    store = _opened(path, "the folder that hmt measure wrote with --out, or that of a finished run")
    if len(store.missing()) == store.num_chunks:
        raise ValueError(f"nothing is measured in {store.path} yet: go on with hmt measure --out {store.path} ...")
    return store


def _both(show: Callable[[int, int], None], path: str, out: str) -> Callable[[int, int], None]:
    """A callback that shows progress on stderr, if there is a terminal, and in the page."""
    from hmt_jax.cli import _report

    write = _report.live(path, out)

    def progress(number: int, total: int) -> None:
        show(number, total)
        write(number, total)

    return progress


def _source_of(store: "hmt_jax.MarginStore") -> Source:
    """The model and the images of a store."""
    if "source" not in store.attributes:
        raise ValueError(f"{store.path} was not written by hmt measure, so its model and images are not known")
    known = store.attributes["source"]
    return Source(**{**known, "model": Model(**_with_tuples(known["model"]))})


def _opened(path: str, named: str = "the folder that hmt measure wrote with --out") -> "hmt_jax.MarginStore":
    """The store at a path; an error that says what to name if there is none."""
    try:
        return hmt_jax.MarginStore.open(path)
    except FileNotFoundError as error:
        if os.path.isfile(path):
            raise ValueError(f"{shown(path)} is a file, and a store of margins is a folder: name {named}") from error
        raise FileNotFoundError(f"there is no store of margins at {shown(path)}: name {named}") from error


def _whole(store: "hmt_jax.MarginStore") -> "hmt_jax.MarginResult":
    """The margins in a store, all of which must be measured."""
    if missing := store.missing():
        raise ValueError(
            f"{len(missing)} of {store.num_chunks} chunks of {store.path} are not measured yet: type the hmt measure "
            "command that began it again; hmt show prints a table of the measured ones"
        )
    return store.read()


def _names_of(store: "hmt_jax.MarginStore") -> list[str]:
    """The names of the subspaces of a store; their numbers if it has no names."""
    number = len(store.attributes.get("subspaces", ())) or store.attributes["layout"]["num_subspaces"]
    return store.attributes.get("subspace_names") or [str(r) for r in range(number)]


def _about(store: "hmt_jax.MarginStore", num_measured: int) -> dict[str, Any]:
    """The part of a store's JSON that comes before its summary."""
    known = {"store": store.path, "num_images": store.num_images, "num_measured": num_measured}
    return {**known, "solver": store.attributes["solver"]}


def _print_json(value: dict[str, Any]) -> None:
    """Prints JSON; numbers that are not finite are null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """The value as dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(value, "tolist"):  # an array
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title(store: "hmt_jax.MarginStore") -> str:
    return os.path.basename(store.path.rstrip("/"))


def _distinct(paths: list[str]) -> list[str]:
    """Short names of stores: the last parts of their paths, or whole paths if those are the same."""
    short = [os.path.splitext(os.path.basename(path.rstrip("/")))[0] for path in paths]
    return short if len(set(short)) == len(short) else paths


def _with_tuples(model: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}


def _backend_in(path: str) -> Any:
    """The backend that a store was measured with; "auto" if there is no store."""
    try:
        return hmt_jax.MarginStore.open(path).attributes["source"]["model"]["backend"]
    except (FileNotFoundError, ValueError, KeyError):  # an error in the store is reported when it is measured
        return "auto"


def _absolute(text: str) -> str:
    """The absolute path if the text names a file that exists, so that other folders find it; else the text itself."""
    path = os.path.expanduser(text)
    return os.path.abspath(path) if os.path.exists(path) else text
