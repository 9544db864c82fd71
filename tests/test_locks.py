"""Locks of folders: who keeps whom out, on this machine and on others, and what is left of a process that died."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from hmt_jax import _locks

HOLD = """
import sys, time
from hmt_jax import _locks
with _locks.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
HERE = f"process {os.getpid()} on {platform.node()}"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """A lock is touched ten times a second, and given up after half a second."""
    monkeypatch.setattr(_locks, "_INTERVAL", 0.1)
    monkeypatch.setattr(_locks, "_PATIENCE", 0.5)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture(params=["locks", "no locks", "locks that other machines do not see"])
def drive(request, monkeypatch):
    """What the system does when it is asked to lock a folder."""

    def flock(*_):
        if request.param == "no locks":
            raise OSError(95, "Operation not supported")

    if request.param != "locks":
        monkeypatch.setattr(_locks.fcntl, "flock", flock)
    if request.param == "locks that other machines do not see":
        boots = iter(range(1000))  # each process is on a machine of its own
        monkeypatch.setattr(_locks, "_boot", lambda: str(next(boots)))
    return request.param


def left_behind(folder, **changes):
    """The file of a lock whose process has died."""
    holder = {"machine": "node7", "boot": "other", "process": 12, "token": "ab"} | changes
    file = folder.with_name(".run.lock")
    file.write_text(json.dumps(holder))
    return file


def test_a_folder_is_locked_once_and_free_afterwards(folder, drive):
    for _ in range(2):
        with _locks.locked(folder):
            with (
                pytest.raises(
                    ValueError, match=f"^{HERE} is at work in {folder}: wait for it, or choose another folder$"
                ),
                _locks.locked(folder),
            ):
                pass
            assert list(folder.iterdir()) == []
        assert list(folder.parent.iterdir()) == [folder]


def test_a_process_that_was_killed_is_named_and_its_lock_taken_over(folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout.readline() == "held\n"
            named = f"process {process.pid} on {platform.node()}"
            with pytest.raises(ValueError, match=f"^{named} is at work in "), _locks.locked(folder):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    told = f"^{named} was at work in {folder}, and has died: its work goes on here$"
    with pytest.warns(UserWarning, match=told), _locks.locked(folder):
        pass
    assert list(folder.parent.iterdir()) == [folder]


def test_a_lock_of_another_machine_holds_while_it_is_touched(folder):
    file = left_behind(folder)
    ended = threading.Event()

    def touch():
        number = 0
        while not ended.wait(0.05):
            number += 1
            os.utime(file, ns=(0, number))  # its clock is wrong by half a century

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"^process 12 on node7 is at work in "), _locks.locked(folder):
            pass
    finally:
        ended.set()
        thread.join()
    with pytest.warns(UserWarning, match=r"^process 12 on node7 was at work in .* and has died"), _locks.locked(folder):
        assert json.loads(file.read_text())["process"] == os.getpid()


def test_a_lock_is_touched_while_it_is_held(folder):
    with _locks.locked(folder):
        file = folder.with_name(".run.lock")
        os.utime(file, ns=(0, 0))
        deadline = time.monotonic() + 20
        while file.stat().st_mtime_ns == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_that_ends_while_another_waits_for_it_is_free(folder, monkeypatch):
    file = left_behind(folder)
    monkeypatch.setattr(_locks.time, "sleep", lambda _: file.unlink(missing_ok=True))
    with pytest.raises(ValueError, match="is at work in"), _locks.locked(folder):
        pass
    with _locks.locked(folder):
        pass


def test_a_file_that_is_no_lock_is_in_the_way(folder):
    file = folder.with_name(".run.lock")
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"^another process is at work in "), _locks.locked(folder):
        pass
    assert file.read_text() == "mine"


def test_where_no_file_can_be_made_the_lock_of_the_system_has_to_do(folder, monkeypatch):
    def fails(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", fails)
    told = r"^another process is at work in "
    with _locks.locked(folder), pytest.raises(ValueError, match=told), _locks.locked(folder):
        pass


def test_a_lock_that_another_process_has_taken_over_stays(folder):
    with _locks.locked(folder):
        file = left_behind(folder)
    assert json.loads(file.read_text())["process"] == 12
