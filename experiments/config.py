"""What an experiment is made of, and how its fields are set from the command line."""

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Sequence

from experiments import configs, manipulations
from hmt_jax import data, models, solvers, training


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Trains a network on a data set and measures its margins along the diagonal of the DCT.

    Attributes:
      data: name of a data set of `hmt_jax.data`.
      manipulation: what is done to all its images, a name in `experiments.manipulations`.
      network: name of an architecture of `hmt_jax.models`.
      seed: of all that is random.
      num_epochs: of training.
      batch_size: of training.
      max_learning_rate: of training.
      num_images: test images whose margins are measured: the first ones.
      window_size: frequencies along each side of a window.
      window_step: frequencies from one window of the diagonal to the next.
      num_candidates: of DeepFool.
      overshoot: of DeepFool.
      max_steps: of DeepFool.
    """

    data: str
    network: str
    window_size: int
    window_step: int
    manipulation: str = "none"
    seed: int = 0
    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.21
    num_images: int = 1000
    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def __post_init__(self):
        for field, known in (
            ("data", data.names()),
            ("network", models.names()),
            ("manipulation", manipulations.names()),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; the known ones are {', '.join(known)}")
        for field in ("num_images", "window_size", "window_step"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        # Settings out of range fail here, before any work.
        _ = self.recipe, self.solver

    @property
    def recipe(self) -> training.Recipe:
        return training.Recipe(
            num_epochs=self.num_epochs, batch_size=self.batch_size, max_learning_rate=self.max_learning_rate
        )

    @property
    def solver(self) -> solvers.DeepFool:
        return solvers.deepfool(num_candidates=self.num_candidates, overshoot=self.overshoot, max_steps=self.max_steps)


def names() -> tuple[str, ...]:
    """The experiments there are: the modules of `experiments.configs`."""
    return tuple(module.name for module in pkgutil.iter_modules(configs.__path__))


def load(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
      ValueError: that lists the known names, if it is none of them.
    """
    return _module(name).CONFIG


def title(name: str) -> str:
    """The first line of what the experiment's file says about it."""
    return (_module(name).__doc__ or "").strip().splitlines()[0]


def override(config: Experiment, assignments: Sequence[str]) -> Experiment:
    """The configuration with `field=value` assignments made.

    Raises:
      ValueError: for what is not an assignment, an unknown field, or a value of the wrong type.
    """
    types = typing.get_type_hints(type(config))
    values = {}
    for assignment in assignments:
        field, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"expected field=value after --set, got {assignment!r}")
        if field not in types:
            raise ValueError(f"unknown field {field!r}; the known ones are {', '.join(types)}")
        try:
            values[field] = types[field](text)
        except ValueError:
            raise ValueError(f"{field} must be of type {types[field].__name__}, got {text!r}") from None
    return dataclasses.replace(config, **values)


def _module(name):
    if name not in names():
        raise ValueError(f"unknown experiment {name!r}; the known ones are {', '.join(names())}")
    return importlib.import_module(f"{configs.__name__}.{name}")
