"""The experiments on synthetic samples: networks trained on T1 and T2, and their margins in known directions."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import hmt_jax
from experiments import report, store
from experiments.experiment import Config, Run, check_at_least, check_measure_every
from hmt_jax import _progress, _tables, classifiers, data, models, plots, solvers, statistics, subspaces, training
from hmt_jax.data import Samples
from hmt_jax.report import Measurement

NETWORKS = ("mlp", "logistic")
_GRID = (121, 201)  # points of a cross-section along u1 and u2
_SHOWN = 300  # samples in a cross-section
_NUM_PANELS = 6  # cross-sections in a picture
_FIELDS = ("margin", "label", "adversarial_label", "num_steps", "status", "gap", "alignment")  # the arrays of a result


class Row(NamedTuple):
    """A subspace in which margins are measured, and the solver."""

    name: str
    subspace: subspaces.Subspace
    solver: solvers.Solver = solvers.DeepFool()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic(Config):
    """The settings that both kinds share: those of samples, of training, and of the observation of a network.

    Attributes:
      num_train: samples to train on.
      num_observed: further samples, on which accuracy and margins are measured.
      side: samples are images of side x side pixels and one channel, so that D is its square.
      noise: sigma, the standard deviation of the samples along all directions that tell nothing.
      num_epochs: epochs of a training.
      batch_size: samples in a step of training.
      max_learning_rate: highest learning rate of training.
      resolution: resolution of the scan of a line, which shows by how much DeepFool overstates.
      reach: reach of that scan, beyond which margins are censored.
    """

    num_train: int = 10_000
    num_observed: int = 1_000
    side: int = 10
    noise: float = 1.0
    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.1
    resolution: float = 0.02
    reach: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "num_train", "num_observed")
        check_at_least(self, 2, "side")
        _ = self.recipe, self.scan  # settings out of range fail here

    @property
    def keys(self) -> dict[str, jax.Array]:
        """Random keys, by what they are for."""
        parts = ("samples", "weights", "training", "subspaces")
        return dict(zip(parts, jax.random.split(jax.random.key(self.seed), len(parts)), strict=True))

    @property
    def recipe(self) -> training.Recipe:
        return training.Recipe(
            num_epochs=self.num_epochs, batch_size=self.batch_size, max_learning_rate=self.max_learning_rate
        )

    @property
    def scan(self) -> solvers.Scan:
        return solvers.Scan(reach=self.reach, resolution=self.resolution)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.side, self.side, 1

    def drawn(self, make: Callable[..., Samples], **options: Any) -> Samples:
        """The samples that a function of `hmt_jax.data` makes, first those to train on."""
        number = self.num_train + self.num_observed
        return make(self.keys["samples"], number, noise=self.noise, image_shape=self.image_shape, **options)

    def create(self, network: str) -> models.Normalized:
        """A network of two classes with random weights."""
        return models.create(network, self.keys["weights"], image_shape=self.image_shape, num_classes=2)

    def train(self, classifier: Any, samples: Samples, **options: Any) -> models.Normalized:
        """The classifier, trained further."""
        images, labels = samples.images[: self.num_train], samples.labels[: self.num_train]
        return training.train(classifier, images, labels, self.recipe, self.keys["training"], **options)

    def scanned(self, row: Row) -> Row:
        """The same direction, scanned."""
        return Row(f"{row.name}, scanned", row.subspace, self.scan)

    def observe(
        self, file: pathlib.Path, classifier: Any, samples: Samples, rows: Sequence[Row], **beside: Any
    ) -> None:
        """Writes accuracies of a classifier, and its margins (R, N) in the subspaces of R rows, on observed samples."""
        train, test = slice(self.num_train), slice(self.num_train, None)
        images = samples.images[test]
        with warnings.catch_warnings(action="ignore", category=hmt_jax.PixelRangeWarning):  # samples are no images
            results = [hmt_jax.measure_margins(classifier, images, row.subspace, row.solver) for row in rows]
        accuracies = [
            training.evaluate(classifier, samples.images[part], samples.labels[part]).accuracy for part in (train, test)
        ]
        store.write_margins(
            file,
            dataclasses.replace(_below_each_other(results), solver="DeepFool and Scan"),
            row=[row.name for row in rows],
            dimension=[row.subspace.dimension for row in rows],
            accuracy=accuracies,
            **beside,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Synthetic):
    """Margins of an MLP and of logistic regression on T1: along u1, in its complement, along others, at random.

    Attributes:
      epsilon: distance of the samples from the hyperplane between the classes, along u1.
      num_others: number of the other directions u2, u3, ... that are measured.
      random_dimensions: dimensions of the random subspaces.
    """

    epsilon: float = 1.0
    num_others: int = 3
    random_dimensions: tuple[int, ...] = (1, 3, 10, 30, 90)

    def __post_init__(self):
        super().__post_init__()
        num_directions = self.side**2
        if not 0 <= self.num_others < num_directions:
            raise ValueError(f"num_others must be between 0 and {num_directions - 1}, got {self.num_others}")
        if not all(1 <= dimension <= num_directions for dimension in self.random_dimensions):
            raise ValueError(
                f"random_dimensions must be between 1 and {num_directions}, as many as a sample has pixels, got "
                f"{self.random_dimensions}"
            )

    def check(self, data_dir: str | None) -> None:
        jax.eval_shape(self.samples)  # refuses settings out of range, and computes nothing

    def samples(self) -> Samples:
        """T1."""
        return self.drawn(data.synthetic_linear, epsilon=self.epsilon)

    def run(self, run: Run) -> None:
        samples, files = self.samples(), {network: run.path / f"{network}.npz" for network in NETWORKS}
        rows = self.rows(samples)
        with _progress.bar("networks", run.name) as show:
            for number, (network, file) in enumerate(files.items()):
                show(number, len(files))
                if not file.exists():
                    self.observe(file, self.train(self.create(network), samples), samples, rows)
        ranks = {network: percentiles(file) for network, file in files.items()}
        axes = plots.margin_intervals([row.name for row in rows], ranks, title=run.name)
        store.write_picture(run.path / "margins.png", axes)
        described = {network: describe(file) for network, file in files.items()}
        accuracy = described["mlp"]["test_accuracy"]
        summary = {"experiment": run.name, "test_accuracy": accuracy, "networks": described}
        store.write_json(run.path / "summary.json", summary)

    def rows(self, samples: Samples) -> list[Row]:
        """The subspaces that are measured."""
        u1, *others = directions(samples, 1 + self.num_others)
        keys = jax.random.split(self.keys["subspaces"], len(self.random_dimensions))
        at_random = [
            Row(f"random {dimension}", subspaces.random(key, self.image_shape, dimension))
            for key, dimension in zip(keys, self.random_dimensions, strict=True)
        ]
        complement = Row("complement", subspaces.orthogonal_complement(u1.subspace))
        return [u1, self.scanned(u1), complement, *others, *at_random]

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        found = {network: store.read_margins(path / f"{network}.npz") for network in NETWORKS}
        return [
            _measurement(network, result, arrays["row"].tolist(), axis="subspace", is_ordered=False)
            for network, (result, arrays) in found.items()
        ]

    def report(self, path: pathlib.Path) -> str:
        lines = []
        for network, found in store.read_json(path / "summary.json")["networks"].items():
            accuracies = f"train accuracy {found['train_accuracy']:.2%}, test accuracy {found['test_accuracy']:.2%}"
            rows = [("subspace", "dimension", "5%", "median", "95%", "no margin")]
            for row in found["rows"]:
                ranks = _tables.numbers(map(float, row["percentiles"].values()))
                num_without = sum(row["counts"].values()) - row["counts"]["converged"]
                rows.append((row["subspace"], str(row["dimension"]), *ranks, str(num_without)))
            lines += [f"{network}: {accuracies}", report.aligned(rows)]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternating(Synthetic):
    """Margins of an MLP on T2, whose classes alternate along u2 and lie 2 epsilon apart along u1.

    Attributes:
      epsilons: distances along u1, rising: a training of `num_epochs` for each.
      is_continued: whether a training goes on from the weights that the one before has found. Its learning rate rises
        and falls again.
      measure_every: epochs from one observation to the next; 0 for the end of a training only.
      period: rho, the period of the oscillation along u2.
      num_periods: K, the number of periods on either side of the origin.
    """

    epsilons: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
    is_continued: bool = False
    measure_every: int = 0
    period: float = 5.0
    num_periods: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_measure_every(self)
        names = {f"{epsilon:g}" for epsilon in self.epsilons}  # in files and titles
        if not self.epsilons or list(self.epsilons) != sorted(self.epsilons) or len(names) < len(self.epsilons):
            raise ValueError(f"epsilons must be rising, and different in six digits, got {self.epsilons}")

    def check(self, data_dir: str | None) -> None:
        jax.eval_shape(lambda: self.samples(self.epsilons[0]))  # refuses settings out of range, and computes nothing

    def samples(self, epsilon: float) -> Samples:
        """T2 with this epsilon; everything else is the same for every epsilon."""
        make = data.synthetic_nonlinear
        return self.drawn(make, epsilon=epsilon, period=self.period, num_periods=self.num_periods)

    def run(self, run: Run) -> None:
        files = observations(run.path, dataclasses.asdict(self))
        with _progress.bar("epochs", run.name) as show:
            # A network goes through one training, or through all of them.
            for epsilons in [self.epsilons] if self.is_continued else [(epsilon,) for epsilon in self.epsilons]:
                if all(file.exists() for epsilon, _, file in files if epsilon in epsilons):
                    continue
                classifier = self.create("mlp")
                for number, epsilon in enumerate(epsilons):
                    ours = {epoch: file for of, epoch, file in files if of == epsilon}
                    classifier = self.train_observed(classifier, epsilon, number * self.num_epochs, ours, show)
        self.draw(run, [file for *_, file in files])
        parts = [{"epoch": epoch, "epsilon": epsilon, **describe(file)} for epsilon, epoch, file in files]
        # Networks in the midst of their first training do not count.
        accuracy = min(part["test_accuracy"] for part in parts if part["epoch"] >= self.num_epochs)
        store.write_json(run.path / "summary.json", {"experiment": run.name, "test_accuracy": accuracy, "parts": parts})

    def train_observed(
        self, classifier: Any, epsilon: float, num_before: int, files: Mapping[int, pathlib.Path], show: Callable
    ) -> models.Normalized:
        """The classifier after a training at one epsilon, which follows so many epochs; it is observed into `files`."""
        samples, num_shown = self.samples(epsilon), self.epsilons.index(epsilon) * self.num_epochs

        def on_epoch(epoch, state, _):
            if (number := num_before + epoch + 1) in files:
                observed = training.classifier_of(state)
                self.observe_plane(files[number], observed, samples, epsilon=epsilon, epoch=number)
            show(num_shown + epoch + 1, len(self.epsilons) * self.num_epochs)

        return self.train(classifier, samples, on_epoch=on_epoch)

    def observe_plane(self, file: pathlib.Path, classifier: Any, samples: Samples, **beside: Any) -> None:
        """Writes margins along u1 and u2, found both ways, and the cross-section in their plane, with some samples."""
        rows = directions(samples, 2)
        rows += [self.scanned(row) for row in rows]
        plane = np.asarray(samples.basis[:, :2])
        logits = classifiers.logits_on_plane(classifier, plane, *self.grid(), samples.image_shape)
        shown = slice(self.num_train, self.num_train + _SHOWN)
        self.observe(
            file,
            classifier,
            samples,
            rows,
            gaps=logits[..., 1] - logits[..., 0],
            points=np.asarray(samples.images[shown]).reshape(-1, len(plane)) @ plane,
            labels=np.asarray(samples.labels[shown]),
            **beside,
        )

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of cross-sections along u1 and u2, half a period beyond the samples."""
        height = self.period * (self.num_periods + 0.5)
        return np.linspace(-self.period / 2, self.period / 2, _GRID[0]), np.linspace(-height, height, _GRID[1])

    def draw(self, run: Run, files: Sequence[pathlib.Path]) -> None:
        """Draws the margins that were observed, and cross-sections."""
        found, curves = [store.read_arrays(file) for file in files], _curves(files)
        epsilons, epochs = (np.array([arrays[name] for arrays in found]) for name in ("epsilon", "epoch"))
        if self.is_continued:
            panels = plots.margin_curves(epochs, curves, title=run.name, xlabel="epochs of training")
            for axes in panels:
                axes.axvline(self.num_epochs, color="black", linestyle=":", zorder=0)
        else:
            places, ticks = np.arange(len(found)), [f"{epsilon:g}" for epsilon in epsilons]
            panels = plots.margin_curves(places, curves, title=run.name, ticks=ticks, xlabel="epsilon")
            for axes in panels:  # the distance of an ideal boundary along u1
                axes.plot(places, np.where(epsilons > 0, epsilons, np.nan), "k:", zorder=0)
        store.write_picture(run.path / "margins.png", panels)
        trained = np.flatnonzero(epochs >= self.num_epochs)
        chosen = np.linspace(0, len(trained) - 1, min(len(trained), _NUM_PANELS)).round().astype(int)
        shown = [found[place] for place in trained[chosen]]
        panels = plots.cross_sections(
            np.stack([arrays["gaps"] for arrays in shown]),
            *self.grid(),
            titles=[f"epsilon {arrays['epsilon']:g}, epoch {arrays['epoch']}" for arrays in shown],
            points=np.stack([arrays["points"] for arrays in shown]),
            labels=shown[0]["labels"],
            title=f"{run.name}: the plane of u1 and u2",
        )
        store.write_picture(run.path / "cross_sections.png", panels)

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        files = observations(path, dataclasses.asdict(self))
        axis, places = "epsilon", [f"{epsilon:g}" for epsilon, *_ in files]
        if self.is_continued:
            axis, places = "epochs of training", [str(epoch) for _, epoch, _ in files]
        found = [store.read_margins(file) for *_, file in files]
        rows = found[0][1]["row"].tolist()
        curves = {row: _below_each_other([result[r] for result, _ in found]) for r, row in enumerate(rows)}
        return [_measurement(row, result, places, axis=axis) for row, result in curves.items()]

    def report(self, path: pathlib.Path) -> str:
        parts = store.read_json(path / "summary.json")["parts"]
        rows = [("epoch", "epsilon", "accuracy", *(row["subspace"] for row in parts[0]["rows"]))]
        for part in parts:
            medians = _tables.numbers(float(row["median"]) for row in part["rows"])
            rows.append((str(part["epoch"]), f"{part['epsilon']:g}", f"{part['test_accuracy']:.2%}", *medians))
        return f"median margins\n{report.aligned(rows)}"


def observations(path: pathlib.Path, settings: Mapping[str, Any]) -> list[tuple[float, int, pathlib.Path]]:
    """The epsilons and epochs at which a run on T2 is observed, in order, and the files for what is observed.

    Epochs count over all trainings if each one goes on from the one before.
    """
    num_epochs = settings["num_epochs"]
    step = settings["measure_every"] or num_epochs
    found = []
    for number, epsilon in enumerate(settings["epsilons"]):
        num_before = number * num_epochs * settings["is_continued"]
        for epoch in range(num_before + step, num_before + num_epochs + 1, step):
            found.append((epsilon, epoch, path / f"epsilon_{epsilon:g}_epoch_{epoch:03d}.npz"))
    return found


def directions(samples: Samples, number: int) -> list[Row]:
    """A row for each of the first directions u1, u2, ..."""
    return [
        Row(f"u{i + 1}", subspaces.from_basis(samples.basis[:, i : i + 1], samples.image_shape)) for i in range(number)
    ]


def percentiles(file: pathlib.Path) -> np.ndarray:
    """The 5th, the 50th and the 95th percentile (R, 3) of the margins in a file of observations."""
    return report.percentiles(store.read_margins(file)[0])


def describe(file: pathlib.Path) -> dict[str, Any]:
    """The observations of a network, for a summary in JSON."""
    result, arrays = store.read_margins(file)
    summary = statistics.summarize(result)
    train_accuracy, test_accuracy = arrays["accuracy"].tolist()
    rows = [
        {"subspace": name, "dimension": int(arrays["dimension"][r]), **report.statistics_of(summary, r)}
        for r, name in enumerate(arrays["row"].tolist())
    ]
    return {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy, "rows": rows}


def _below_each_other(results: Sequence[hmt_jax.MarginResult]) -> hmt_jax.MarginResult:
    """One result in the subspaces of several, which may be of several classifiers and solvers."""
    arrays: Any = {field: np.concatenate([getattr(result, field) for result in results]) for field in _FIELDS}
    return dataclasses.replace(results[0], **arrays, work=sum((r.work for r in results[1:]), results[0].work))


def _measurement(name: str, result: hmt_jax.MarginResult, subspaces: list[str], **settings: Any) -> Measurement:
    ids = [f"sample {n}" for n in range(result.margin.shape[1])]
    samples = "the samples are points of a synthetic distribution"
    return Measurement(name=name, result=result, subspaces=subspaces, image_ids=ids, no_pictures=samples, **settings)


def _curves(files) -> dict[str, dict[str, np.ndarray]]:
    """Percentiles (E, 3) along u1 and u2 of E observations, by DeepFool and scanned."""
    u1, u2, *scanned = np.stack([percentiles(file) for file in files], axis=1)
    return {"DeepFool": {"u1": u1, "u2": u2}, "scanned line": dict(zip(("u1", "u2"), scanned, strict=True))}
