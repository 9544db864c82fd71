"""`hmt` as a process: signals, pipes, terminals, and surroundings that lack something."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
import warnings

import numpy as np
import pytest
from workspace import MEASURE, start

import hmt_jax
from hmt_jax.cli import _process, main

PATIENCE = 100  # seconds after which a test fails; none waits as long if all is well


def finished(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


# In this process


@pytest.fixture
def ended(monkeypatch):
    """Signals end no process here: they raise this error with the exit code."""

    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    former = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 75)])
def test_a_signal_is_one_line_that_says_how_to_go_on(number, name, code, ended, hmt, folder, monkeypatch, capsys):
    former = signal.getsignal(number)
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("hmt_jax.cli._commands.Measure.run", lambda _: os.kill(os.getpid(), number))
    _, out, err = hmt(*MEASURE[:-1], "a b.zarr")
    assert (codes, out) == ([code], "")
    typed = "hmt measure --model cli_models:make --images images.npy --out 'a b.zarr'"
    assert err == f"\nstopped by {name}: go on with: {typed}\n"
    _, _, err = hmt(*MEASURE[:-1], "whole.zarr")
    kept = hmt_jax.MarginStore.open("whole.zarr").num_images
    assert err.startswith(f"\nstopped by {name}: {kept} of {kept} images are in whole.zarr; go on with: hmt measure ")
    monkeypatch.setattr("hmt_jax.models.names", lambda: os.kill(os.getpid(), number) or ())
    assert hmt("models")[2] == f"\nstopped by {name}: start again with: hmt models\n"
    assert signal.getsignal(number) == former


def test_signals_that_the_process_ignores_stay_ignored(ended, hmt, monkeypatch):
    """As with `nohup`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr("hmt_jax.models.names", lambda: os.kill(os.getpid(), signal.SIGINT) or ("lenet",))
    assert hmt("models") == (0, "lenet\n", "")


def test_a_warning_is_one_line(hmt, monkeypatch, recwarn):
    def names():
        sys.stderr.write(warnings.formatwarning("beware", UserWarning, "file.py", 3))
        return ("lenet",)

    monkeypatch.setattr("hmt_jax.models.names", names)
    assert hmt("models") == (0, "lenet\n", "warning: beware\n")
    assert "UserWarning" in warnings.formatwarning("beware", UserWarning, "file.py", 3)


@pytest.mark.slow
def test_a_warning_of_pixels_names_options(hmt, folder, tmp_path):
    np.save(tmp_path / "images.npy", np.linspace(-2, 2, 128, dtype="f4").reshape(2, 8, 8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # and printed, as outside of pytest
        warnings.showwarning = lambda *parts: sys.stderr.write(warnings.formatwarning(*parts[:4]))
        code, _, err = hmt(*MEASURE[:3], "--images", tmp_path / "images.npy", "--out", tmp_path / "m.zarr")
    assert code == 0
    assert err == (
        "warning: pixels of 2 of 2 images leave [0, 1], from -2 to 2: pass images before normalisation, 8-bit "
        "or divided by 255, with --mean and --std if the model takes them\n"
    )


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ("0.12.3", None, _process._ONEDNN_FLAGS),
        ("0.12.3", "--mine", "--mine"),
        ("0.11.2", None, None),
        ("0.13.0", None, None),
    ],
)
def test_flags_are_given_to_the_release_that_knows_them(version, flags, expected, hmt, monkeypatch):
    """And where nobody has set others: an unknown one would end the process."""
    monkeypatch.setattr("jaxlib.__version__", version)
    monkeypatch.setenv("XLA_FLAGS", "--others")  # so that what was there comes back
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS")
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    seen = []
    monkeypatch.setattr("hmt_jax.models.names", lambda: seen.append(os.environ.get("XLA_FLAGS")) or ())
    with warnings.catch_warnings():
        assert hmt("models")[0] == 0
    assert seen == [expected]


def test_output_that_its_reader_has_closed_ends_the_command_in_silence(hmt, monkeypatch, capsys):
    for arguments in (["models"], ["--help"], ["measure", "--help"]):
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as closed, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", closed)
            assert main(arguments) == 141
        assert capsys.readouterr().err == ""


def test_output_on_a_full_disk_is_one_sentence(hmt, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["models"]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("error", [MemoryError(), ValueError("wrong"), OSError(28, "No space left on device")])
def test_errors_of_users_and_machines_are_2(error):
    assert _process.failed(error)[0] == 2


@pytest.mark.slow
def test_without_a_home_directory_programs_are_not_kept(hmt, folder, monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    code, _, err = hmt(*MEASURE[:-1], tmp_path / "m.zarr")
    assert (code, err) == (0, "")


def test_the_library_imports_every_name_when_it_is_used():
    for name in hmt_jax.__all__:
        assert getattr(hmt_jax, name) is (hmt_jax.__getattr__(name) if name[0] != "_" else hmt_jax.__version__)
    assert set(hmt_jax.__all__) <= set(dir(hmt_jax))
    with pytest.raises(AttributeError, match=r"^module 'hmt_jax' has no attribute 'margin'$"):
        hmt_jax.margin  # noqa: B018


# In processes of their own


@pytest.mark.slow
def test_help_comes_without_jax_and_ctrl_c_while_it_is_imported_is_one_line(folder, tmp_path):
    (tmp_path / "jax.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(100)")
    settings = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path[1:]])}
    for arguments, code in {("--help",): 0, ("measure", "--help"): 0, ("measure",): 2}.items():
        assert finished(start(*arguments, env=settings))[0] == code
    message = "\nstopped by Ctrl-C: start again with: python -m hmt_jax models\n"
    assert finished(start("models", env=settings)) == (130, "", message)


@pytest.mark.slow
def test_a_narrow_terminal_of_ascii_gets_ascii(folder):
    settings = {"PYTHONIOENCODING": "ascii", "COLUMNS": "40", "NO_COLOR": "1", "PYTHONUTF8": "0"}
    help_text = start("measure", "--help", env=settings)
    mistake = start("show", "é/結.zarr", env=settings)
    code, out, err = finished(help_text)
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "--images" in out
    code, out, err = finished(mistake)
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no store of margins at \\xe9/\\u7d50.zarr: name ")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams_do_no_harm(closed, folder):
    command = f'exec "$0" -m hmt_jax models {closed}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.slow
def test_a_stopped_measurement_goes_on_bit_for_bit(folder, tmp_path):
    """It is stopped while it measures, between chunks that are written."""
    np.save(tmp_path / "many.npy", np.random.default_rng(0).uniform(size=(8000, 8, 8, 1)).astype("f4"))
    command = ["measure", "--model", "cli_models:make", "--images", tmp_path / "many.npy", "--solver", "tight:fast"]
    command = [*map(str, command), "--cache-dir", str(tmp_path / "cache"), "--out"]
    code, _, err = finished(start(*command, str(tmp_path / "whole.zarr")))
    assert (code, err) == (0, "")
    out = tmp_path / "stopped.zarr"
    process = start(*command, str(out))
    while not (out / "status" / "c" / "0" / "0").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130
    assert hmt_jax.MarginStore.open(out).missing()
    code, _, err = finished(start(*command, str(out)))
    assert (code, err) == (0, "")
    one, other = (hmt_jax.MarginStore.open(path).read() for path in (out, tmp_path / "whole.zarr"))
    for name in ("margin", "gap", "alignment", "status", "label", "adversarial_label", "num_steps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_what_was_measured_is_kept(folder, tmp_path):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).uniform(size=(8000, 8, 8, 1)).astype("f4"))
    arguments = ["measure", "--model", "cli_models:make", "--images", str(tmp_path / "many.npy")]
    # At most 3072 bytes in a file, in units of 512.
    process = start(*arguments, "--out", str(tmp_path / "m.zarr"), before="ulimit -f 6", env={"HOME": None})
    code, _, err = finished(process)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'm.zarr'} can't be written (")


@pytest.mark.slow
def test_progress_on_a_terminal_is_a_bar_and_ctrl_c_ends_it(folder, tmp_path):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).uniform(size=(8000, 8, 8, 1)).astype("f4"))
    arguments = ["measure", "--model", "cli_models:make", "--images", str(tmp_path / "many.npy")]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = start(*arguments, "--solver", "tight:normal", "--out", str(tmp_path / "m.zarr"), stderr=theirs)
    os.close(theirs)
    shown = ""
    while not re.search(r"[1-9]\d*/8000 .*pairs/s", shown):
        shown += os.read(ours, 1000).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130
    with contextlib.suppress(OSError):  # the end
        while True:
            shown += os.read(ours, 1000).decode(errors="replace")
    os.close(ours)
    assert re.search(r"stopped by Ctrl-C: \d+ of 8000 images are in ", shown)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["imports", "compiles"])
def test_ctrl_c_before_anything_is_measured(moment, folder, tmp_path):
    now = tmp_path / "now"
    wait = f"open({str(now)!r}, 'x').close() or time.sleep(100)"
    (tmp_path / "net.py").write_text(
        f"""
import time
{wait if moment == "imports" else ""}
calls = []
def logits(images):
    calls.append(images)
    {wait} if len(calls) == 3 else None
    return images.reshape(len(images), -1)[:, :3]
def make():
    return logits
"""
    )
    process = start(
        "measure", "--model", f"{tmp_path}/net.py:make", "--images", "images.npy", "--out", f"{tmp_path}/m.zarr"
    )
    while not now.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, _, err = finished(process)
    assert code == 130
    typed = f"python -m hmt_jax measure --model {tmp_path}/net.py:make --images images.npy --out {tmp_path}/m.zarr"
    assert err.startswith("\nstopped by Ctrl-C: ")
    assert err.endswith(f"go on with: {typed}\n")
    assert len(err.splitlines()) == 2


@pytest.mark.slow
def test_two_measurements_into_one_store_end_whole(folder, tmp_path):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).uniform(size=(8000, 8, 8, 1)).astype("f4"))
    arguments = ["measure", "--model", "cli_models:make", "--images", str(tmp_path / "many.npy"), "--out"]
    both = [start(*arguments, str(tmp_path / "m.zarr")) for _ in range(2)]
    ends = [finished(process) for process in both]
    assert 0 in [code for code, *_ in ends]
    for code, _, err in ends:
        assert code == 0 or (code == 2 and len(err.splitlines()) == 1)
    assert finished(start(*arguments, str(tmp_path / "alone.zarr")))[0] == 0
    one, other = (hmt_jax.MarginStore.open(tmp_path / name) for name in ("m.zarr", "alone.zarr"))
    assert one.verify() == one.missing() == []
    np.testing.assert_array_equal(one.read().margin, other.read().margin)


@pytest.mark.slow
def test_a_signal_that_another_thread_receives_ends_the_command(tmp_path):
    """Without a loop in the main thread, Python handles it only when the command is done."""
    (tmp_path / "stuck.py").write_text(
        "import signal, sys, threading, time\n"
        "from hmt_jax.cli import _process\n"
        "class Stuck:\n"
        "    def run(self):\n"
        "        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "        time.sleep(600)\n"
        "    def remedy(self, typed):\n"
        "        return typed\n"
        "sys.exit(_process.main(lambda _: Stuck(), [], program='stuck'))\n"
    )
    finished = subprocess.run(
        [sys.executable, tmp_path / "stuck.py"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (finished.returncode, finished.stderr) == (75, "\nstopped by SIGTERM: stuck\n")


WORK = """
import signal, sys, threading, time
from hmt_jax import checkpoints
from hmt_jax.cli import _process
_process._SECONDS_TO_FINISH = 1
class Work:
    def run(self):
        with _process.putting_off() as should_stop:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            while not should_stop():
                time.sleep(0.01)
            {then}
    def remedy(self, typed):
        return typed
sys.exit(_process.main(lambda _: Work(), [], program='work'))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("raise checkpoints.PreemptedError('kept')", (75, "\nstopped by SIGTERM: work\n")),
        ("time.sleep(600)", (75, "\nstopped by SIGTERM: work\n")),  # after the time to finish
        ("signal.pthread_kill(threading.main_thread().ident, signal.SIGINT); time.sleep(600)",
         (130, "\nstopped by Ctrl-C: work\n")),
        ("raise OSError('the disk is full')", (2, "error: the disk is full\n")),
    ],
)  # fmt: skip
def test_work_may_keep_where_it_is_before_a_signal_ends_it(then, expected, tmp_path):
    (tmp_path / "work.py").write_text(WORK.format(then=then))
    finished = subprocess.run(
        [sys.executable, tmp_path / "work.py"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (finished.returncode, finished.stderr) == expected
