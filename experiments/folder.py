"""The folder of a run: which configuration it belongs to, and files that are written whole or not at all."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.config import Config

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_PACKAGES = ("hmt-jax", "jax", "jaxlib", "flax", "optax", "chex", "numpy", "tensorflow-datasets", "safetensors")
_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_REFERENCE = "baseline.json"
_COMMON = (_ENVIRONMENT, "checks.json", "summary.json", "audit*")


def check(path: pathlib.Path, name: str, config: Config) -> None:
    """Makes sure that a folder is new, that of this experiment with this configuration, or of one that came to nothing.

    Raises:
      ValueError: if it holds another configuration, or files that no run wrote.
    """
    if not (path / _CONFIG).exists():
        if path.exists() and any(path.iterdir()):
            raise ValueError(
                f"{path} holds files but no {_CONFIG}, so it is no run's folder: give another with --folder"
            )
        return
    differing = differences(read_config(path), described(name, config))
    if differing and any(found.is_file() for found in path.rglob("*") if found.name not in {_CONFIG, _ENVIRONMENT}):
        text = "; ".join(f"{field} is {there!r} there, {here!r} here" for field, (there, here) in differing.items())
        raise ValueError(
            f"{path} belongs to another configuration ({text}), and stays as it is: give another folder with --folder"
        )


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Keeps the folder of a run, which is made if it is not there, from other processes; an empty one is removed.

    Where files cannot be locked, as on Windows and on some network drives, nothing is kept from anybody.

    Raises:
      ValueError: if another run is at work in it, or it is a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a folder with --folder")
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            directory = os.open(path, os.O_RDONLY)
            stack.callback(os.close, directory)
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another run is at work in {path}: wait for it, or give another folder with --folder"
                ) from None
            except OSError:  # a drive without locks
                pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty, most of the time
                path.rmdir()


def start(path: pathlib.Path, name: str, config: Config, *, fresh: bool) -> None:
    """Makes the folder of a run, or takes up one that `check` found right.

    `fresh` removes the results in it, but for a run inside it that another one beside it refers to.
    """
    path.mkdir(parents=True, exist_ok=True)
    if fresh:
        needed = _referred_beside(path)
        for result in (found for pattern in (*_COMMON, *config.results) for found in path.glob(pattern)):
            if (other := needed.get(result.resolve())) is not None:
                print(f"{result} stays, for {other} refers to it")
            else:
                shutil.rmtree(result) if result.is_dir() else result.unlink()
    elif (path / _CONFIG).exists() and differences(read_config(path), described(name, config)):  # came to nothing
        (path / _ENVIRONMENT).unlink(missing_ok=True)
    write_json(path / _CONFIG, described(name, config))
    if not (path / _ENVIRONMENT).exists():
        write_json(path / _ENVIRONMENT, {**environment(), "seconds": 0, "earlier": []})
    elif not (path / "summary.json").exists():  # it goes on, maybe elsewhere
        before, now = read_environment(path), environment()
        seconds, earlier = before.pop("seconds"), before.pop("earlier", [])
        write_json(path / _ENVIRONMENT, {**now, "seconds": seconds, "earlier": [*earlier, *[before] * (before != now)]})


@contextlib.contextmanager
def timed(path: pathlib.Path, interval: float = 60) -> Iterator[None]:
    """Adds the wall time of the block to that of the run in a folder, over all the calls that it took.

    It is written every `interval` seconds, so that a call that is killed counts but for the last of them.
    """
    before, started, ended = read_environment(path), time.perf_counter(), threading.Event()

    def record():
        seconds = before["seconds"] + time.perf_counter() - started
        write_json(path / _ENVIRONMENT, {**before, "seconds": round(seconds, 2)})

    def keep_recording():
        while not ended.wait(interval):
            record()

    thread = threading.Thread(target=keep_recording, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # of a folder that is gone: what ended the block says more
            record()


def refer(path: pathlib.Path, other: pathlib.Path) -> None:
    """Writes down that the run in a folder refers to that in another one."""
    write_json(path / _REFERENCE, {"folder": os.path.relpath(other.resolve(), path.resolve())})


def referred(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the run that the one in a folder refers to, there or not; None if it refers to none."""
    if not (path / _REFERENCE).exists():
        return None
    return (path.resolve() / read_json(path / _REFERENCE)["folder"]).resolve()


def _referred_beside(path) -> dict[pathlib.Path | None, pathlib.Path]:
    """What the runs beside a folder refer to, and which run it is; damaged ones are passed by."""
    found = {}
    for other in {file.parent for file in path.resolve().parent.glob(f"*/{_REFERENCE}")} - {path.resolve()}:
        with contextlib.suppress(ValueError, LookupError, TypeError, OSError):
            found[referred(other)] = other
    return found


def is_of_run(path: pathlib.Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (path / _CONFIG).exists()


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The configuration of the run in a folder: its fields, and the name of its experiment.

    Raises:
      ValueError: if it is damaged, or not there.
    """
    with _readable(path / _CONFIG, remedy=f"remove {path}, and run that experiment again"):
        return json.loads((path / _CONFIG).read_text())


def read_environment(path: pathlib.Path) -> dict[str, Any]:
    """What the run in a folder ran on, as `environment` gives it, and the seconds that it took.

    Where it went on on something else, that is told, and what came before is in a list, "earlier".
    """
    return read_json(path / _ENVIRONMENT)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations differ, with both values. Files with checksums count by these alone."""
    files = {*found.get("checksums", {})} & {*expected.get("checksums", {})}
    pairs = {field: (found.get(field), expected.get(field)) for field in {**found, **expected} if field not in files}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, which takes its place when the block ends well and is removed otherwise."""
    temporary = path.with_name(f"part-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, for people to read as well."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as an .npz file, into a folder that is made if it is not there."""
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def write_picture(path: pathlib.Path, figure) -> None:
    """Writes a figure of matplotlib as a .png file."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
      ValueError: if it is damaged, or not there.
    """
    with _readable(path, zipfile.BadZipFile, EOFError), path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file.

    Raises:
      ValueError: if it is damaged, or not there.
    """
    with _readable(path):
        return json.loads(path.read_text())


@contextlib.contextmanager
def _readable(path, *errors, remedy="start that run over with --fresh"):
    try:
        yield
    except (FileNotFoundError, ValueError, *errors) as error:
        state = "is not there" if isinstance(error, FileNotFoundError) else "is damaged"
        raise ValueError(f"{path} {state}, though a run writes its files whole: {remedy}") from error


def environment() -> dict[str, Any]:
    """What a run ran on: versions, devices, and the commit of this checkout."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "devices": [device.device_kind for device in jax.local_devices()],
        "commit": _git("rev-parse", "HEAD"),
        "is_commit_modified": bool(_git("status", "--porcelain")),
    }


def described(name: str, config: Config) -> dict[str, Any]:
    """A configuration as JSON gives it back."""
    checksums = config.checksums()
    extra = {"checksums": checksums} if checksums else {}
    return json.loads(json.dumps({"experiment": name, **dataclasses.asdict(config), **extra}))


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    """What git prints about this checkout; None where there is no git or no checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(pathlib.Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
