"""The folder of a run: its configuration and its files, which are written whole and checked before they are used.

A record, `files.sha256`, holds the SHA-256 of every file, in the format of `sha256sum -c`. `verify` compares all files
with it before a run resumes and before a finished run is used. A file that differs is damaged, or belongs to another
run. Training checkpoints and stores of margins have checksums of their own.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import hmt_jax
from hmt_jax import _disk, _locks, _misc, models
from hmt_jax.margins._result import from_arrays, to_arrays

FORMAT = 4  # of run folders; before there was a number, they were of format 1
CLASSIFIER, PICTURES = "checkpoint.safetensors", "pictures.npz"
CHECKPOINTS, MONITORED, MARGINS = "checkpoints", "monitored", "margins.zarr"  # the folders in a run's folder
PAGE = ("measurements.npz", "report.html")  # made of the other files; `hmt report` looks for the first one
_SUMMARY, _VERDICTS = "summary.json", "claims.json"  # the last files of a run
_CONFIG, _ENVIRONMENT, _BASELINE, _RECORD = "config.json", "environment.json", "baseline.json", "files.sha256"
_PACKAGES = ("hmt-jax", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "safetensors")
_recording = threading.Lock()


def to_json(name: str, config: Any) -> dict[str, Any]:
    """The content of `config.json`: the experiment, its settings, the files that they name, and the format."""
    described = {
        "format": FORMAT,
        "hmt_jax": hmt_jax.__version__,
        "experiment": name,
        "settings": dataclasses.asdict(config),
        "checksums": config.checksums(),
    }
    return json.loads(json.dumps(described))  # tuples as lists, as they will be read


def identity(described: dict[str, Any]) -> dict[str, Any]:
    """The values that tell a run from others, from its `config.json`. The checksum of a file stands for its path."""
    return {"experiment": described["experiment"], **described["settings"], **described["checksums"]}


def differences(found: dict[str, Any], expected: dict[str, Any], here: str = "here") -> str:
    """The settings in which two runs differ, with both values, as text."""
    return _misc.differences(identity(found), identity(expected), here=here)


def check(path: pathlib.Path, described: dict[str, Any]) -> None:
    """Raises ValueError unless a folder is new, belongs to the run that `to_json` describes, or holds no results."""
    if not (path / _CONFIG).exists():
        if path.exists() and any(found.name != _RECORD for found in path.iterdir()):
            raise ValueError(
                f"{path} holds files but no {_CONFIG}, so it is no run's folder: give another with --folder"
            )
        return
    incidental, differing = {_CONFIG, _ENVIRONMENT, _RECORD}, differences(read_config(path), described)
    if differing and any(found.is_file() for found in path.rglob("*") if found.name not in incidental):
        raise ValueError(
            f"{path} belongs to another configuration ({differing}), and stays as it is: choose another folder with "
            "--folder"
        )


def start(path: pathlib.Path, described: dict[str, Any], *, fresh: bool) -> None:
    """Makes the folder of a run, or resumes one that `check` has accepted; `fresh` removes what its run has written."""
    make(path)
    if fresh or ((path / _CONFIG).exists() and differences(read_config(path), described)):
        ours = {name.partition("/")[0] for name in _names(_record(path))} | {_RECORD, CHECKPOINTS, MONITORED, MARGINS}
        for each in sorted(
            path.iterdir(), key=lambda each: each.name in (_RECORD, _CONFIG)
        ):  # if killed, still a run's
            if each.name in ours:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
    (path / _RECORD).touch()
    write_json(path / _CONFIG, described)
    if not (path / _SUMMARY).exists():  # there is work to do, maybe on another machine than before
        now, before = environment(), read_environment(path) if (path / _ENVIRONMENT).exists() else {}
        seconds, earlier = before.pop("seconds", 0), before.pop("earlier", [])
        if before and before != now:
            earlier.append(before)
        write_json(path / _ENVIRONMENT, {**now, "seconds": seconds, "earlier": earlier})


def make(path: pathlib.Path) -> None:
    """Makes a folder and its parents, if they are not there; OSError, with a remedy, if it can't."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the folder {path} can't be made ({error.strerror}): name one in a folder that can be written"
        ) from error


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Locks a run's folder, which is made if it is not there, against other processes; removes it if it stays empty.

    Half-written files of killed processes are removed.

    Raises:
      ValueError: if another run or audit is at work in it, or it is a file.
      OSError: if it can't be made.
    """
    if path.is_file():
        raise ValueError(f"{path} is a file: give a folder with --folder")
    make(path)
    with _locks.locked(path):
        for part in (*path.glob(f"{_disk.PREFIX}*"), *path.glob(f"{MONITORED}/{_disk.PREFIX}*")):
            part.unlink(missing_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty, most of the time
                path.rmdir()


@contextlib.contextmanager
def timed(path: pathlib.Path, interval: float = 60) -> Iterator[None]:
    """Adds the wall time of the block to the run's, which is a sum over all calls.

    It is written every `interval` seconds, so that a call that is killed loses at most the last interval.
    """
    before, started = read_environment(path), time.perf_counter()

    def record():
        seconds = round(before["seconds"] + time.perf_counter() - started, 2)
        with contextlib.suppress(OSError):  # a full disk, or a deleted folder: other writers report it
            write_json(path / _ENVIRONMENT, {**before, "seconds": seconds})

    try:
        with _misc.repeated(record, interval):
            yield
    finally:
        record()


def finish(path: pathlib.Path, verdicts: dict[str, Any]) -> None:
    """Writes the tested claims, the last file of a run."""
    write_json(path / _VERDICTS, verdicts)


def verdicts(path: pathlib.Path) -> dict[str, Any]:
    """The tested claims of a finished run, "claims", and "is_quick"."""
    return read_json(path / _VERDICTS)


def is_finished(path: pathlib.Path) -> bool:
    """Whether a folder holds a finished run. If only the file of its claims is missing, a run just tests them again."""
    return (path / _VERDICTS).exists()


def check_finished(path: pathlib.Path) -> None:
    """Raises ValueError unless a folder holds a finished run whose files have not changed since it wrote them."""
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: give that of a finished run, such as results/NAME")
    if not (path / _CONFIG).exists():
        raise ValueError(f"{path} is not the folder of a run: give that of a finished one, such as results/NAME")
    read_config(path)
    if not is_finished(path):
        raise ValueError(f"the run in {path} is not finished: finish it with the command that began it")
    verify(path)


def verify(path: pathlib.Path) -> None:
    """Raises ValueError, which names the file, if one in a run's folder has changed since the run wrote it."""
    before = _record(path)
    for name in _names(before):
        file = path / name
        # An audit may replace a file while it is read here, and its entry after that.
        if file.is_file() and _disk.checksum_line(name, file.read_bytes()) not in {*before, *_record(path)}:
            raise ValueError(
                f"{file} is not what its run wrote, by its SHA-256 in {_RECORD}: put back whichever changed, or "
                f"{_remedy(file)}"
            )


def refer(path: pathlib.Path, other: pathlib.Path) -> None:
    """Records that the run in a folder is compared with the one in another folder, as it is now."""
    folder = os.path.relpath(other.resolve(), path.resolve())
    write_json(path / _BASELINE, {"folder": folder, "config": read_config(other)})


def baseline(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the run that the one in a folder is compared with; None if there is none.

    Raises:
      ValueError: if it is no longer where it was, not finished, or another run by now, or its files have changed.
    """
    if not (path / _BASELINE).exists():
        return None
    reference = read_json(path / _BASELINE)
    found = (path.resolve() / reference["folder"]).resolve()
    remedy = f"put it back, or start {path} over with --fresh"
    if not found.is_dir():
        raise ValueError(f"{path} is compared with {found}, which is gone: {remedy}")
    if not is_finished(found):
        raise ValueError(f"{path} is compared with {found}, which is not finished: finish that run first")
    if differing := differences(read_config(found), reference["config"], here="before"):
        raise ValueError(f"{path} is compared with {found}, which holds another run by now ({differing}): {remedy}")
    verify(found)
    return found


# Files. Those who read one raise ValueError, which names it, if it is damaged or not there.


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole, in a folder that is made if needed, and enters it into the record; OSError if it can't."""
    root = path.parent.parent if path.parent.name == MONITORED else path.parent
    name = path.relative_to(root).as_posix()
    try:
        path.parent.mkdir(exist_ok=True)
        if not (root / _RECORD).exists():
            return _disk.write(path, content)
        with _recording:  # the run's time is written by another thread
            before, line = _record(root), _disk.checksum_line(name, content)
            # The former entry stays until the file is replaced. So the record fits whenever the process is killed.
            _write_record(root, [*before, line])
            _disk.write(path, content)
            _write_record(root, [*(each for each in before if _names([each]) != [name]), line])
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        text = "no space is left: free some and run the same command again, which resumes where this one stopped"
        raise OSError(error.errno, text, str(path)) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON that people can read as well."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as an .npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(path, content.getvalue())


def write_margins(path: pathlib.Path, result: hmt_jax.MarginResult, **beside: Any) -> None:
    """Writes margins as `hmt_jax.MarginResult.save` does, without coordinates, with further arrays beside its own."""
    write_arrays(path, {**to_arrays(dataclasses.replace(result, coordinates=None)), **beside})


def write_picture(path: pathlib.Path, drawn) -> None:
    """Writes a figure of matplotlib, or that of some axes, as a .png file."""
    content = io.BytesIO()
    np.ravel(drawn)[0].figure.savefig(content, format="png")
    write(path, content.getvalue())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    return _read(path, lambda content: dict(np.load(io.BytesIO(content))))


def read_margins(path: pathlib.Path) -> tuple[hmt_jax.MarginResult, dict[str, np.ndarray]]:
    """The margins in an .npz file, and all of its arrays."""

    def parse(content):
        arrays = dict(np.load(io.BytesIO(content)))
        return hmt_jax.MarginResult(**from_arrays(arrays)), arrays

    return _read(path, parse)


def read_measurement(path: pathlib.Path) -> hmt_jax.report.Measurement:
    """The margins of the run in a folder, with their pictures, for its page."""
    return _read(path / PICTURES, lambda _: hmt_jax.report.load(path / PICTURES)[0])


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file."""
    return _read(path, json.loads)


def read_classifier(path: pathlib.Path) -> models.Normalized:
    """The trained network of the run in a folder."""
    return models.load(path / CLASSIFIER)[0]


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The description of the run in a folder, as `to_json` returns it; ValueError if another version wrote it."""
    described = _read(path / _CONFIG, lambda content: dict(json.loads(content)))
    if (found := described.get("format", 1)) != FORMAT:
        packages = read_environment(path).get("packages", {}) if (path / _ENVIRONMENT).exists() else {}
        version = described.get("hmt_jax") or packages.get("hmt-jax") or "of an unknown version"
        raise ValueError(
            f"{path} was written by hmt-jax {version} in format {found} of run folders, and this version, "
            f"{hmt_jax.__version__}, reads format {FORMAT}: run the experiment again in another folder"
        )
    return described


def settings(path: pathlib.Path) -> dict[str, Any]:
    """The fields of the configuration of the run in a folder, as its dataclass has them."""
    found = read_config(path)["settings"]
    return {field: tuple(value) if isinstance(value, list) else value for field, value in found.items()}


def read_environment(path: pathlib.Path) -> dict[str, Any]:
    """The `environment` of the run in a folder, the "seconds" that it took, and the "earlier" ones if it has moved."""
    return read_json(path / _ENVIRONMENT)


def monitored(path: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """The arrays measured while a run trained, keyed by the number of epochs trained before."""
    files = {int(file.stem): file for file in (path / MONITORED).glob("[0-9]*.npz")}
    return {epoch: read_arrays(files[epoch]) for epoch in sorted(files)}


def _read(path: pathlib.Path, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(path.read_bytes() if path.exists() else b"")
    except Exception as error:  # parsers of damaged files may raise anything, even MemoryError or RecursionError
        state = "damaged" if path.exists() else "not there"
        raise ValueError(f"{path} is {state}, though a run writes its files whole: {_remedy(path)}") from error


def _remedy(path) -> str:
    if path.name == _CONFIG:
        return f"remove {path.parent}, and run that experiment again"
    if path.suffix == ".png" or path.name.startswith("audit"):
        return "remove it"
    if path.name in PAGE:
        return "remove it, and repeat the command of that run, which makes it anew"
    return "start that run over with --fresh"


def _record(root) -> list[str]:
    """The lines of the record, SHA-256 and name; none without a record. A file that is being replaced has two lines."""
    record = root / _RECORD
    return record.read_text(errors="replace").splitlines() if record.exists() else []


def _names(lines) -> list[str]:
    return list(dict.fromkeys(line.partition("  ")[2] for line in lines))


def _write_record(root, lines) -> None:
    _disk.write(root / _RECORD, "".join(f"{line}\n" for line in lines).encode())


def environment() -> dict[str, Any]:
    """The versions, devices and the commit of this checkout, for JSON."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "devices": [device.device_kind for device in jax.local_devices()],
        "commit": _git("rev-parse", "HEAD"),
        "is_commit_modified": bool(_git("status", "--porcelain")),
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    """The output of git about this checkout; None if there is no git or no checkout."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
