"""What every experiment is: a configuration that can run, by name, with fields that the command line sets."""

import abc
import dataclasses
import importlib
import math
import pathlib
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from experiments import configs
from experiments.checks import Check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(abc.ABC):
    """A kind of experiment; its fields say which one.

    A kind is a frozen dataclass in a file of its own. Fields are numbers, texts, or tuples of one of them, so that they
    go into JSON and can be set from the command line.

    Attributes:
      seed: of all that is random.
      results: names of the files and folders that a run of this kind leaves, as patterns such as `margins_*.npz`:
        what starting over removes.
    """

    seed: int = 0
    results: ClassVar[tuple[str, ...]]

    def check(self, data_dir: str | None) -> None:  # noqa: B027
        """Raises ValueError for what only shows once data are there, before any work is done or undone."""

    def checksums(self) -> dict[str, str]:
        """Of files that fields name, by the field: a run is another one where they are. None, most of the time."""
        return {}

    @abc.abstractmethod
    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        """Runs, or does what an earlier call left undone.

        Writes the results into the folder `path`, each file by `experiments.folder`, and last of all
        `summary.json`, with "test_accuracy" in it where there is one, and pictures.

        Args:
          name: of the experiment.
          path: the folder, which is there.
          data_dir: where prepared data sets are; where TFDS keeps them if None.
        """

    @abc.abstractmethod
    def report(self, path: pathlib.Path) -> str:
        """What a finished run found, as text for the terminal."""


def names() -> tuple[str, ...]:
    """The experiments there are: the modules of `experiments.configs`, but for those that others share (`_NAME`)."""
    modules = (module.name for module in pkgutil.iter_modules(configs.__path__))
    return tuple(sorted(name for name in modules if not name.startswith("_")))


def load(name: str, *, quick: bool = False) -> Config:
    """The experiment of that name, or its quick form.

    Raises:
      ValueError: that lists the known names, if it is none of them.
    """
    return _constant(name, "QUICK" if quick else "CONFIG", Config)


def described(fields: Mapping[str, Any]) -> tuple[str, Config]:
    """The experiment's name, and the configuration, that a run's folder describes by its fields.

    Raises:
      ValueError: if there is no such experiment, or it has other fields now.
    """
    values: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()
    }
    name: str = values.pop("experiment")
    values.pop("checksums", None)
    # A run that another kind of experiment made for its network is of the kind below.
    kinds = [kind for kind in type(load(name)).__mro__ if issubclass(kind, Config)]
    for kind in kinds:
        if {field.name for field in dataclasses.fields(kind)} == set(values):
            return name, kind(**values)
    differing = set(values) ^ {field.name for field in dataclasses.fields(kinds[0])}
    raise ValueError(
        f"the run is of an earlier form of {name}, whose fields differ: {', '.join(sorted(differing))}; run it again"
    )


def training_devices(batch_size: int) -> list[jax.Device]:
    """Local devices: as many as can share batches of a size evenly."""
    devices = jax.local_devices()
    return devices[: max(number for number in range(1, len(devices) + 1) if batch_size % number == 0)]


def checks(name: str) -> tuple[Check, ...]:
    """The claims that the experiment is to show."""
    return _constant(name, "CHECKS", tuple)


def title(name: str) -> str:
    """The first line of what the experiment's file says about it."""
    text = (_module(name).__doc__ or "").strip()
    if not text:
        raise ValueError(f"{_file(name)} has no docstring: begin it with one, because `list` shows its first line")
    return text.splitlines()[0]


def check(name: str) -> None:
    """Raises ValueError if the file of an experiment cannot be imported, or lacks something that it must define."""
    load(name), load(name, quick=True), checks(name), title(name)


def override(config: Config, assignments: Sequence[str]) -> Config:
    """The configuration with `field=value` assignments made; values of a tuple have commas between them.

    Raises:
      ValueError: for what is not an assignment, an unknown field, or a value of the wrong type or not finite.
    """
    hints = typing.get_type_hints(type(config))
    types = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        field, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"expected field=value after --set, got {assignment!r}")
        if field not in types:
            raise ValueError(f"unknown field {field!r}; the known ones are {', '.join(types)}")
        try:
            values[field] = _parse(types[field], text)
        except ValueError:
            kind = types[field] if typing.get_args(types[field]) else types[field].__name__
            raise ValueError(f"{field} must be of type {kind}, got {text!r}") from None
        numbers = values[field] if isinstance(values[field], tuple) else (values[field],)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{field} must be finite, got {text}")
    return dataclasses.replace(config, **values)


def _parse(kind, text):
    if elements := typing.get_args(kind):
        return tuple(_parse(elements[0], part) for part in text.split(",") if part)
    return kind(text)


def _module(name):
    if name not in names():
        raise ValueError(f"unknown experiment {name!r}; the known ones are {', '.join(names())}")
    try:
        return importlib.import_module(f"{configs.__name__}.{name}")
    except Exception as error:  # a user's file may raise anything
        raise ValueError(f"{_file(name)} cannot be imported ({type(error).__name__}: {error})") from error


def _constant(name, constant, kind):
    """The value of a constant that the file of an experiment defines."""
    module = _module(name)
    if not hasattr(module, constant):
        raise ValueError(f"{_file(name)} defines no {constant}: an experiment has CONFIG, QUICK and CHECKS")
    value = getattr(module, constant)
    if not isinstance(value, kind) or (kind is tuple and not all(isinstance(each, Check) for each in value)):
        expected = "a tuple of Check" if kind is tuple else "a configuration, such as DiagonalMargins(...)"
        raise ValueError(f"{constant} in {_file(name)} must be {expected}, got {type(value).__name__}")
    return value


def _file(name) -> str:
    return f"experiments/configs/{name}.py"
