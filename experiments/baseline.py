"""The run that another one is compared with: one found beside it, or one made inside its folder."""

import os
import pathlib
from typing import Any

from experiments import folder
from experiments import run as runner
from experiments.config import Config

# What bears on neither the classifier nor its margins, and what does so under an attack alone.
_INCIDENTAL = {
    "experiment",
    "baseline",
    "evaluation_steps",
    "evaluation_restarts",
    "measure_every",
    "num_monitored",
}
_OF_ATTACKS = {"norm", "epsilon", "attack_steps", "attack_band"}
_FILE = "baseline.json"


def provide(name: str, config: Config, path: pathlib.Path, data_dir: str | None) -> None:
    """Writes which run the one in a folder is compared with: a finished one beside it, or a new one inside it."""
    if (path / _FILE).exists():
        return
    found = _find(config, path)
    if found is None:
        print(f"{name}, what it is compared with:")
        found = path / "baseline"
        runner.run(name, config, found, data_dir=data_dir)
        print(f"\n{name}:")
    folder.write_json(path / _FILE, {"folder": os.path.relpath(found, path)})


def of(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the run that the one in a folder is compared with; None if it is compared with none."""
    if not (path / _FILE).exists():
        return None
    return path / folder.read_json(path / _FILE)["folder"]


def _find(config, path) -> pathlib.Path | None:
    """A finished run beside `path`, or made for one beside it, with the classifier and margins of one of `config`."""
    wanted, root = _decisive(folder.described("", config)), path.resolve().parent
    for other in (*sorted(root.iterdir()), *sorted(root.glob("*/baseline"))):
        if other != path.resolve() and runner.is_finished(other) and _decisive(folder.read_config(other)) == wanted:
            return other
    return None


def _decisive(fields: dict[str, Any]) -> dict[str, Any]:
    ignored = _INCIDENTAL | (_OF_ATTACKS if fields.get("attack") == "none" else set())
    return {field: value for field, value in fields.items() if field not in ignored}
