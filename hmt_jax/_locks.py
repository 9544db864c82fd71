"""Locks that keep two processes from writing into one folder, also where one is on another machine, or has died."""

import contextlib
import json
import os
import pathlib
import platform
import secrets
import time
from collections.abc import Iterator
from typing import Any

from hmt_jax._misc import repeated, warn

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# A process touches the file of its lock every `_INTERVAL` seconds. If it has not for `_PATIENCE` seconds, it is dead.
_INTERVAL, _PATIENCE = 5.0, 30.0


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes that lock a folder out of it.

    The system locks the folder, and a file beside it names the machine and the process. Locks of the system end with
    their process, but some network drives have none, or none that other machines see. There the file decides: a lock
    holds as long as its process touches the file, which takes up to half a minute to see.

    Raises:
      ValueError: if another process has locked it; it names the process.

    Warns:
      UserWarning: if a process that had locked it has died.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    file = folder.with_name(f".{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        is_locked = _lock(folder, stack)
        holder = _read(file)
        if is_locked is False or (holder is not None and _is_alive(file, holder, is_locked is True)):
            raise _taken(folder, holder)
        if holder is not None:
            warn(f"{_named(holder)} was at work in {folder}, and has died: its work goes on here")
            file.unlink(missing_ok=True)
        stack.enter_context(_held(file, folder))
        yield


def _lock(folder, stack) -> bool | None:
    """Whether the system has locked a folder for this process; None if it can't lock it for any."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a drive without locks
        return None
    return True


def _read(file) -> dict[str, Any] | None:
    """The process that a lock's file names; None if there is no such file, or it is being written."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text())
        return {name: found[name] for name in ("machine", "boot", "process", "token")}
    return None


def _is_alive(file, holder, is_system_locked: bool) -> bool:
    """Whether the process that a lock's file names is alive."""
    if is_system_locked and holder["boot"] == _boot():  # on this machine, so the system would have refused its lock
        return False
    touched, deadline = _touched(file), time.monotonic() + _PATIENCE
    while _touched(file) == touched:  # compared with itself, because the clocks of two machines differ
        if time.monotonic() > deadline:
            return False
        time.sleep(_INTERVAL / 10)
    return True


def _boot() -> str:
    """A text that this machine has had since it was started, and no other one has, if the system has such a text."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _touched(file) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # it was removed, because the lock has ended
        return 0


def _named(holder) -> str:
    return "another process" if holder is None else f"process {holder['process']} on {holder['machine']}"


def _taken(folder, holder) -> ValueError:
    return ValueError(f"{_named(holder)} is at work in {folder}: wait for it, or choose another folder")


@contextlib.contextmanager
def _held(file, folder) -> Iterator[None]:
    """Keeps the file of a lock, which names this process, and touches it from time to time."""
    own = {"machine": platform.node(), "boot": _boot(), "process": os.getpid(), "token": secrets.token_hex(8)}
    try:
        with open(file, "x") as opened:  # of several processes, only one can
            opened.write(json.dumps(own))
    except FileExistsError:
        raise _taken(folder, _read(file)) from None
    except OSError:  # no file can be made beside the folder, so the lock of the system has to do
        yield
        return

    def touch() -> None:
        with contextlib.suppress(OSError):
            os.utime(file)

    try:
        with repeated(touch, _INTERVAL):
            yield
    finally:
        if _read(file) == own:  # and not that of a process that took this one for dead
            with contextlib.suppress(OSError):
                file.unlink()
