"""The experiment on T2 in which a network goes on training on samples that have moved: it forgets what it used."""

import dataclasses
import pathlib

import numpy as np

from experiments import folder, synthetic
from experiments.checks import from_medians
from experiments.nonlinear import Alternating, curves
from experiments.synthetic import Statistic
from hmt_jax import plots, training

_NUM_PANELS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetting(Alternating):
    """A network trained at one epsilon trains as long again at another.

    The samples move along u1 alone. The second training has a learning rate that rises and falls as in the first.

    Attributes:
      first_epsilon: of the first training, num_epochs long.
      second_epsilon: of the second.
      measure_every: epochs from one observation to the next.
    """

    first_epsilon: float = 0.0
    second_epsilon: float = 1.0
    measure_every: int = 2

    def __post_init__(self):
        super().__post_init__()
        if not (self.measure_every >= 1 and self.num_epochs % self.measure_every == 0):
            raise ValueError(
                f"measure_every must divide num_epochs, or the end is not observed; got {self.measure_every} and "
                f"{self.num_epochs}"
            )

    def check(self, data_dir: str | None) -> None:
        self.check_samples(min(self.first_epsilon, self.second_epsilon))

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        files = _files(path, self.num_epochs, self.measure_every)
        if not all(file.exists() for file in files.values()):
            classifier = self.create("mlp")
            for epsilon, num_before in ((self.first_epsilon, 0), (self.second_epsilon, self.num_epochs)):
                print(f"{name}: epsilon = {epsilon:g}", flush=True)
                samples = self.samples(epsilon)
                on_epoch = self._observer(files, samples, epsilon, num_before)
                classifier = self.train(classifier, samples, on_epoch=on_epoch)
        found = {epoch: folder.read_arrays(file) for epoch, file in files.items()}
        panels = plots.margin_curves(list(found), curves(list(found.values())), title=name, xlabel="epochs of training")
        for axes in panels:
            axes.axvline(self.num_epochs, color="black", linestyle=":", zorder=0)
        folder.write_picture(path / "margins.png", panels)
        after = [epoch for epoch in found if epoch >= self.num_epochs]
        shown = [after[i] for i in np.linspace(0, len(after) - 1, min(len(after), _NUM_PANELS)).round().astype(int)]
        self.draw_plane(name, path, {f"epoch {epoch}": found[epoch] for epoch in shown})
        self.summarize(name, path, list(found.values()))

    def _observer(self, files, samples, epsilon, num_before):
        """What to do after an epoch."""

        def on_epoch(epoch, state, metrics):
            num_epochs = num_before + epoch + 1
            if num_epochs in files:
                classifier = training.classifier_of(state)
                self.observe(files[num_epochs], classifier, samples, epsilon=epsilon, epoch=num_epochs)

        return on_epoch


def at_switch(path: pathlib.Path) -> pathlib.Path:
    """Finds what was observed at the end of the first training, in a run's folder."""
    return _files_of(path)[folder.read_config(path)["num_epochs"]]


def greatest_growth(row: str, num_epochs: int) -> Statistic:
    """The greatest growth of the median margin in a subspace within so many epochs of the second training."""

    def statistic(path):
        switch = folder.read_config(path)["num_epochs"]
        files = {epoch: file for epoch, file in _files_of(path).items() if epoch >= switch}
        epochs = np.array(list(files))
        pairs = [(i, j) for i in range(len(epochs)) for j in range(i) if epochs[i] - epochs[j] <= num_epochs]
        if not pairs:
            raise ValueError(f"no epochs that were observed are within {num_epochs} of each other: lower measure_every")
        later, earlier = np.array(pairs).T
        margins = np.concatenate([synthetic.margins(file, row) for file in files.values()])
        # A ratio of two censored medians, NaN, is no growth: fmax passes it over.
        return from_medians(lambda medians: np.fmax.reduce(medians[later] / medians[earlier]), margins)

    return statistic


def _files_of(path):
    found = folder.read_config(path)
    return _files(path, found["num_epochs"], found["measure_every"])


def _files(path, num_epochs, measure_every):
    """What is observed after which epoch, counted over both trainings."""
    epochs = range(measure_every, 2 * num_epochs + 1, measure_every)
    return {epoch: path / f"epoch_{epoch:03d}.npz" for epoch in epochs}
