"""The folder of a run: its configuration and its files, which are written whole and read only if unchanged.

A record, `files.sha256`, holds the SHA-256 of every file, in the format of `sha256sum -c`. A file that differs from the
record is refused wherever it is read: it is damaged, or belongs to another run. Training checkpoints and stores of
margins have checksums of their own.
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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import hmt_jax
from hmt_jax import _disk, models
from hmt_jax.models import _files

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 2  # of run folders; before there was a number, they were of format 1
CLASSIFIER = "checkpoint.safetensors"
CHECKPOINTS, MONITORED, MARGINS = "checkpoints", "monitored", "margins.zarr"  # the folders in a run's folder
_VERDICTS = "claims.json"  # the last file of a run
_CONFIG, _ENVIRONMENT, _BASELINE, _RECORD = "config.json", "environment.json", "baseline.json", "files.sha256"
_PACKAGES = ("hmt-jax", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "safetensors")
_recording = threading.Lock()


# The life of a run's folder


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


def check(path: pathlib.Path, described: dict[str, Any]) -> None:
    """Checks that a folder is new, belongs to the run described by `to_json`, or holds a run that came to nothing.

    Raises:
      ValueError: if it holds another configuration, or files that no run wrote.
    """
    if not (path / _CONFIG).exists():
        if path.exists() and any(found.name != _RECORD for found in path.iterdir()):
            raise ValueError(
                f"{path} holds files but no {_CONFIG}, so it is no run's folder: give another with --folder"
            )
        return
    differing = differences(read_config(path), described)
    incidental = {_CONFIG, _ENVIRONMENT, _RECORD}
    if differing and any(found.is_file() for found in path.rglob("*") if found.name not in incidental):
        raise ValueError(
            f"{path} belongs to another configuration ({_listed(differing, 'there', 'here')}), and stays as it is: "
            "choose another folder with --folder"
        )


def start(path: pathlib.Path, described: dict[str, Any], *, fresh: bool) -> None:
    """Makes the folder of a run, or resumes one that `check` has accepted; `fresh` removes what its run has written."""
    make(path)
    if fresh:
        _empty(path)
    elif (path / _CONFIG).exists() and differences(read_config(path), described):  # a run that came to nothing
        (path / _ENVIRONMENT).unlink(missing_ok=True)
    (path / _RECORD).touch()
    write_json(path / _CONFIG, described)
    if not (path / _ENVIRONMENT).exists():
        write_json(path / _ENVIRONMENT, {**environment(), "seconds": 0, "earlier": []})
    elif not (path / "summary.json").exists():  # it resumes, maybe on another machine
        before, now = read_environment(path), environment()
        seconds, earlier = before.pop("seconds"), before.pop("earlier")
        write_json(path / _ENVIRONMENT, {**now, "seconds": seconds, "earlier": [*earlier, *[before] * (before != now)]})


def _empty(path) -> None:
    """Removes all that a run has written into its folder, and nothing else."""
    ours = {name.partition("/")[0] for name in _recorded(path)} | {_RECORD, CHECKPOINTS, MONITORED, MARGINS}
    for each in sorted(path.iterdir(), key=lambda each: each.name in (_RECORD, _CONFIG)):  # if killed, still a run's
        if each.name in ours:
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def make(path: pathlib.Path) -> None:
    """Makes a folder and its parents, if they are not there.

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
    """Locks a run's folder, which is made if it is not there, against other processes; removes it if it stays empty.

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


# What a run is compared with


def refer(path: pathlib.Path, other: pathlib.Path) -> None:
    """Records that the run in a folder is compared with the one in another folder, as it is now."""
    folder = os.path.relpath(other.resolve(), path.resolve())
    write_json(path / _BASELINE, {"folder": folder, "config": read_config(other)})


def baseline(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the run that the one in a folder is compared with; None if there is none.

    Raises:
      ValueError: if it is no longer where it was, not finished, or another run by now.
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
    if differing := differences(read_config(found), reference["config"]):
        text = _listed(differing, "there", "before")
        raise ValueError(f"{path} is compared with {found}, which holds another run by now ({text}): {remedy}")
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ, with both values. Files with checksums count by these alone."""
    files = {*found["checksums"]} & {*expected["checksums"]}

    def flat(described):
        settings = {field: value for field, value in described["settings"].items() if field not in files}
        return {"experiment": described["experiment"], **settings, "checksums": described["checksums"]}

    one, other = flat(found), flat(expected)
    pairs = {field: (one.get(field), other.get(field)) for field in {**one, **other}}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def _listed(differing, first, second) -> str:
    return "; ".join(f"{field} is {one!r} {first}, {other!r} {second}" for field, (one, other) in differing.items())


# Files


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
    """Writes a value as JSON that people can read as well."""
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
    """The value in a JSON file.

    Raises:
      ValueError: if it is damaged, not there, or not what its run wrote.
    """
    return _read(path, json.loads)


def read_classifier(path: pathlib.Path) -> models.Normalized:
    """The classifier in a file.

    Raises:
      ValueError: if it is damaged, not there, or not what its run wrote.
    """
    _content(path)
    return models.load(path)[0]


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The description of the run in a folder, as `to_json` returns it.

    Raises:
      ValueError: if it is damaged, not there, or in the format of another version.
    """
    described = read_json(path / _CONFIG)
    if not isinstance(described, dict):
        raise ValueError(f"{path / _CONFIG} is damaged: remove {path}, and run that experiment again")
    found = described.get("format", 1)
    if found != FORMAT:
        version = described.get("hmt_jax")
        if version is None and (path / _ENVIRONMENT).exists():
            version = read_environment(path).get("packages", {}).get("hmt-jax")
        raise ValueError(
            f"{path} was written by hmt-jax {version or 'of an unknown version'} in format {found} of run folders, and "
            f"this version, {hmt_jax.__version__}, reads format {FORMAT}: run the experiment again in another folder"
        )
    return described


def settings(path: pathlib.Path) -> dict[str, Any]:
    """The fields of the configuration of the run in a folder, as its dataclass has them."""
    found = read_config(path)["settings"]
    return {field: tuple(value) if isinstance(value, list) else value for field, value in found.items()}


def read_environment(path: pathlib.Path) -> dict[str, Any]:
    """The return value of `environment` for the run in a folder, and the "seconds" that the run took.

    If it resumed on another machine, "earlier" lists the former ones.
    """
    return read_json(path / _ENVIRONMENT)


def monitored(path: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """The arrays measured while a run trained, keyed by the number of epochs trained before."""
    files = {int(file.stem): file for file in (path / MONITORED).glob("[0-9]*.npz")}
    return {epoch: read_arrays(files[epoch]) for epoch in sorted(files)}


def verify(path: pathlib.Path) -> None:
    """Checks that the files in a run's folder are as the run wrote them. Missing files are not checked.

    Raises:
      ValueError: that names the first file that has changed.
    """
    for name in dict.fromkeys(_recorded(path)):
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
    root = path.parent.parent if path.parent.name == MONITORED else path.parent
    return root if (root / _RECORD).exists() else None


def _record(root) -> list[str]:
    """The lines of the record, SHA-256 and name. A file that is being replaced has two lines."""
    try:
        return (root / _RECORD).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _recorded(root) -> list[str]:
    return [line.partition("  ")[2] for line in _record(root)]


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
    try:
        answer = subprocess.run(
            ["git", "-C", str(pathlib.Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
