"""The folder of a run: its configuration, and its files, which are written whole and read only if unchanged.

A record, `files.sha256`, holds the SHA-256 of every file, in the format of `sha256sum -c`. A file that differs from the
record is refused wherever it is read: it is damaged, or belongs to another run. Training checkpoints have records of
their own. A folder of an earlier version has no record, and its files are not checked until its run resumes.
"""

import contextlib
import dataclasses
import errno
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.config import Config
from hmt_jax import _disk, models
from hmt_jax.models import _files

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_PACKAGES = ("hmt-jax", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "safetensors")
_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_REFERENCE = "baseline.json"
_RECORD = "files.sha256"
_MONITORED = "monitored"
_COMMON = (_RECORD, _ENVIRONMENT, "checks.json", "summary.json", "audit*")
_recording = threading.Lock()


def check(path: pathlib.Path, name: str, config: Config) -> None:
    """Makes sure that a folder is new, that of this experiment with this configuration, or of one that came to nothing.

    Raises:
      ValueError: if it holds another configuration, or files that no run wrote.
    """
    if not (path / _CONFIG).exists():
        if path.exists() and any(found.name != _RECORD for found in path.iterdir()):
            raise ValueError(
                f"{path} holds files but no {_CONFIG}, so it is no run's folder: give another with --folder"
            )
        return
    differing = differences(read_config(path), described(name, config))
    incidental = {_CONFIG, _ENVIRONMENT, _RECORD}
    if differing and any(found.is_file() for found in path.rglob("*") if found.name not in incidental):
        text = "; ".join(f"{field} is {there!r} there, {here!r} here" for field, (there, here) in differing.items())
        raise ValueError(
            f"{path} belongs to another configuration ({text}), and stays as it is: choose another folder with --folder"
        )


def make(path: pathlib.Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
      OSError: if it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the folder {path} can't be made ({error.strerror}): name one in a folder that can be written"
        ) from error


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Keeps the folder of a run, which is made if it is not there, from other processes; an empty one is removed.

    Half-written files of killed processes are removed. Where files cannot be locked, as on Windows and on some network
    drives, other processes are not kept out.

    Raises:
      ValueError: if another run or audit is at work in it, or it is a file.
      OSError: if it can't be made.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a folder with --folder")
    make(path)
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            directory = os.open(path, os.O_RDONLY)
            stack.callback(os.close, directory)
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another run or audit is at work in {path}: wait for it, or choose another folder"
                ) from None
            except OSError:  # a drive without locks
                pass
        for part in (*path.glob(f"{_disk.PREFIX}*"), *path.glob(f"{_MONITORED}/{_disk.PREFIX}*")):
            part.unlink(missing_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty, most of the time
                path.rmdir()


def start(path: pathlib.Path, name: str, config: Config, *, fresh: bool) -> None:
    """Makes the folder of a run, or takes up one that `check` found right.

    `fresh` removes the results in it, but for a run inside it that another one beside it refers to.
    If there is no record, as in a folder of an earlier version, one is made from the files as they are now.
    """
    make(path)
    if fresh:
        needed = _referred_beside(path)
        for result in (found for pattern in (*_COMMON, *config.results) for found in path.glob(pattern)):
            if (other := needed.get(result.resolve())) is not None:
                print(f"{result} stays, for {other} refers to it")
            else:
                shutil.rmtree(result) if result.is_dir() else result.unlink()
    elif (path / _CONFIG).exists() and differences(read_config(path), described(name, config)):  # came to nothing
        (path / _ENVIRONMENT).unlink(missing_ok=True)
    if not (path / _RECORD).exists():
        patterns = (*_COMMON, *config.results, f"{_MONITORED}/*")
        found = [file for pattern in patterns for file in path.glob(pattern) if file.is_file()]
        if found:
            print(f"{path} has no {_RECORD}: it is made from the files as they are now")
        (path / _RECORD).touch()
        for file in found:
            _enter(file, file.read_bytes(), keep_former=False)
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
        with contextlib.suppress(OSError):  # a full disk, or a deleted folder: other writers report it
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
    return read_json(path / _CONFIG)


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
def reserved(path: pathlib.Path, num_bytes: int = 0) -> Iterator[None]:
    """Reserves space in a folder during the block, for the file that is written right after it.

    So a full disk is noticed before a long computation, and not after it, when the results would be lost.

    Args:
      path: the folder.
      num_bytes: the size of that file, beyond a mebibyte.

    Raises:
      OSError: if there is no such space.
    """
    with contextlib.ExitStack() as stack:
        with _told_if_full(path):
            ballast = stack.enter_context(tempfile.TemporaryFile(dir=path))
            ballast.write(bytes(2**20 + num_bytes))
            ballast.flush()
            os.fsync(ballast.fileno())
        yield


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole, in a folder that is made if needed, and enters it into the record of its run.

    Raises:
      OSError: if it can't be written.
    """
    with _told_if_full(path):
        path.parent.mkdir(exist_ok=True)
        # Entered before it is written; the former entry stays until after. So the record fits whenever we are killed.
        _enter(path, content, keep_former=True)
        _disk.write(path, content)
        _enter(path, content, keep_former=False)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, for people to read as well."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as an .npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(path, content.getvalue())


def write_picture(path: pathlib.Path, drawn) -> None:
    """Writes a figure of matplotlib, or that of some axes, as a .png file."""
    content = io.BytesIO()
    np.ravel(drawn)[0].figure.savefig(content, format="png")
    write(path, content.getvalue())


def write_classifier(path: pathlib.Path, classifier: models.Normalized, **header: Any) -> None:
    """Writes a classifier as `hmt_jax.models.save` does."""
    write(path, _files.to_bytes(classifier, **header))


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
      ValueError: if it is damaged, not there, or not what its run wrote.
    """
    return _read(path, _arrays)


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file. Its objects raise ValueError, which names the file, for keys that they lack.

    Raises:
      ValueError: if it is damaged, not there, or not what its run wrote.
    """
    return _read(path, lambda content: json.loads(content, object_pairs_hook=functools.partial(_Object, path)))


class _Object(dict):
    """An object in a JSON file."""

    def __init__(self, path: pathlib.Path, items: list[tuple[str, Any]]):
        super().__init__(items)
        self._path = path

    def __missing__(self, key):
        raise ValueError(f"{self._path} has no {key!r}, so it is damaged or of another version: {_remedy(self._path)}")


def read_classifier(path: pathlib.Path) -> models.Normalized:
    """The classifier in a file.

    Raises:
      ValueError: if it is damaged, not there, or not what its run wrote.
    """
    _content(path)
    return models.load(path)[0]


def verify(path: pathlib.Path) -> None:
    """Checks that the files in a run's folder are as the run wrote them. Missing files are not checked.

    Raises:
      ValueError: that names the first file that has changed.
    """
    for name in dict.fromkeys(line.partition("  ")[2] for line in _record(path)):
        if (path / name).is_file():
            _content(path / name)


def _content(path) -> bytes:
    """The content of a file, checked against the record of its run."""
    for _ in range(2):  # again if it was replaced between reading it and reading the record
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{path} is not there, though a run writes its files whole: {_remedy(path)}") from error
        root = _root(path)
        if root is None or _line(root, path, content) in _record(root):
            return content
    raise ValueError(
        f"{path} is not what its run wrote, by its SHA-256 in {_RECORD}: put back whichever changed, or {_remedy(path)}"
    )


def _read(path, parse):
    content = _content(path)
    try:
        return parse(content)
    except Exception as error:  # parsers of damaged files may raise anything, even MemoryError or RecursionError
        raise ValueError(f"{path} is damaged, though a run writes its files whole: {_remedy(path)}") from error


def _remedy(path) -> str:
    if path.name == _CONFIG:
        return f"remove {path.parent}, and run that experiment again"
    if path.suffix == ".png" or path.name.startswith("audit"):
        return "remove it"
    return "start that run over with --fresh"


def _arrays(content) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def _root(path) -> pathlib.Path | None:
    """The folder of the run that a file belongs to; None if it has no record."""
    root = path.parent.parent if path.parent.name == _MONITORED else path.parent
    return root if (root / _RECORD).exists() else None


def _record(root) -> list[str]:
    """The lines of the record, SHA-256 and name. A file that is being replaced has two lines."""
    try:
        return (root / _RECORD).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _line(root, path, content) -> str:
    return _disk.checksum_line(path.relative_to(root).as_posix(), content)


def _enter(path, content, *, keep_former) -> None:
    if (root := _root(path)) is None:
        return
    with _recording:  # the run's time is written by another thread
        line, before = _line(root, path, content), _record(root)
        name = line.partition("  ")[2]
        others = [each for each in before if each != line and (keep_former or each.partition("  ")[2] != name)]
        if (after := [*others, line]) != before:
            _disk.write(root / _RECORD, "".join(f"{each}\n" for each in after).encode())


@contextlib.contextmanager
def _told_if_full(path):
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise OSError(
            error.errno,
            "no space is left: free some and run the same command again, which resumes where this one stopped",
            str(path),
        ) from error


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
