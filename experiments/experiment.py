"""The parts of an experiment: a configuration that can run, its quick form, its claims, and a note."""

import abc
import dataclasses
import math
import pathlib
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from experiments.claims import Claim
from hmt_jax import _checks
from hmt_jax.report import Measurement


class Run(NamedTuple):
    """A run of an experiment, in a folder that is there.

    Attributes:
      name: name of the experiment.
      path: folder of the results.
      data_dir: folder of prepared data sets; TFDS's own if None.
      baseline: folder of the finished run that this one is compared with; None if there is none.
    """

    name: str
    path: pathlib.Path
    data_dir: str | None = None
    baseline: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(abc.ABC):
    """A kind of experiment; the fields of an instance say which one.

    A kind is a frozen dataclass in a file of its own. No kind is derived from another; what two kinds share is in a
    base of both that is no kind itself. Fields are numbers, texts or tuples of one of them, so that they can be written
    as JSON and set from the command line, whose help shows the sentences about them under "Attributes".

    Attributes:
      seed: seed of everything random.
    """

    seed: int = 0
    baseline = "none"  # the name of the experiment that this one is compared with: a field of kinds that may have one

    def __post_init__(self):
        """Raises ValueError for a setting out of range, before any work."""
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and {2**32 - 1}, got {self.seed}")
        for field, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, field)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ValueError(f"{field} must be finite, got {value}")
            if typing.get_origin(hint) is Literal:
                check_known(field, value, typing.get_args(hint))

    def check(self, data_dir: str | None) -> None:  # noqa: B027
        """Raises ValueError for settings that do not fit the data. Called before any work is done or undone."""

    def checksums(self) -> dict[str, str]:
        """SHA-256 prefixes of the files that fields name, keyed by field. Usually empty."""
        return {}

    def baseline_config(self, other: "Config", changes: dict[str, Any]) -> "Config":
        """The configuration of the run that this one is compared with.

        Args:
          other: the experiment that `baseline` names.
          changes: the fields of this configuration that differ from its own experiment, as set by the user.
        """
        raise ValueError(f"{type(self).__name__} is compared with no other run: set baseline to none")

    @abc.abstractmethod
    def run(self, run: Run) -> None:
        """Runs, or does what an earlier call left undone.

        Writes each result with `experiments.store` into `run.path`, and last `summary.json`, which holds
        "test_accuracy" if there is one.
        """

    @abc.abstractmethod
    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        """The margins of the finished run in a folder, for its page. The page adds what it knows of any run."""

    @abc.abstractmethod
    def report(self, path: pathlib.Path) -> str:
        """The findings of the finished run in a folder, as text for the terminal."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An entry of the catalogue.

    Attributes:
      config: its full form.
      quick: the same program on little data: seconds to two minutes on two CPU cores.
      claims: the claims that its results are tested against.
      note: the lab note, whose first line is the title.
    """

    config: Config
    quick: Config
    claims: Sequence[Claim]
    note: str

    def __post_init__(self):
        if type(self.quick) is not type(self.config) or not self.note.strip():
            raise ValueError(f"an experiment needs a note and two forms of one kind, got {self}")

    @property
    def title(self) -> str:
        return self.note.strip().partition("\n")[0]


def check_at_least(config: Any, least: int, *fields: str) -> None:
    """Raises ValueError if a field is less."""
    for field in fields:
        _checks.integer(field, getattr(config, field), at_least=least)


def check_at_most(field: str, value: int, most: int, things: str) -> None:
    """Raises ValueError if a field asks for more things than there are."""
    if value > most:
        raise ValueError(f"{field}={value} is more than the {most} {things}: set {field} to at most {most}")


def check_known(field: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError, which lists the known values, if the value is none of them."""
    if value not in known:
        raise ValueError(f"unknown {field} {value!r}; the known ones are {', '.join(known)}")


def check_measure_every(config: Any) -> None:
    """Raises ValueError unless a network is measured at the end of its training, or not while it trains."""
    every = _checks.integer("measure_every", config.measure_every, at_least=0)
    if every and config.num_epochs % every:
        raise ValueError(
            f"measure_every must divide num_epochs, or the end is not measured; got {every} and {config.num_epochs}"
        )
