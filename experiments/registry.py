"""The experiments there are, by name."""

import dataclasses
import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import store
from experiments.catalogue import TABLES
from experiments.experiment import Config, Experiment

_EXPERIMENTS = {name: experiment for table in TABLES.values() for name, experiment in table.items()}


def names() -> tuple[str, ...]:
    """The names of all experiments, in the order of the catalogue."""
    return tuple(_EXPERIMENTS)


def get(name: str) -> Experiment:
    """The experiment of that name; ValueError, which names the most similar one, if there is none."""
    if name not in _EXPERIMENTS:
        similar = difflib.get_close_matches(name, _EXPERIMENTS, n=1)
        hint = f"did you mean {similar[0]!r}?" if similar else "`python -m experiments list` shows all"
        raise ValueError(f"unknown experiment {name!r}: {hint}")
    return _EXPERIMENTS[name]


def form(name: str, *, is_quick: bool) -> Config:
    """The full or the quick form of an experiment."""
    return get(name).quick if is_quick else get(name).config


def reopen(path: pathlib.Path) -> tuple[str, Config]:
    """The name and the configuration of the run in a folder; ValueError if its experiment has other fields now."""
    name, settings = store.read_config(path)["experiment"], store.settings(path)
    kind = type(get(name).config)
    if differing := sorted({field.name for field in dataclasses.fields(kind)} ^ set(settings)):
        raise ValueError(
            f"the run in {path} is of an earlier form of {name}, whose fields differ: {', '.join(differing)}; run it "
            "again in another folder"
        )
    return name, kind(**settings)


def changes(name: str, settings: Mapping[str, Any], *, is_quick: bool = False) -> dict[str, Any]:
    """The settings that differ from those of the full or the quick form of an experiment."""
    own = dataclasses.asdict(form(name, is_quick=is_quick))
    return {field: value for field, value in settings.items() if field not in own or own[field] != value}
