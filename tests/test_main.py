"""The command line where something goes wrong: what it prints, and its exit status."""

import importlib
import io
import json
import os
import pathlib
import signal
import sys
import tempfile

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import config, configs, run

GOOD = '''"""An experiment of one's own."""

from experiments.configs.digits import CHECKS, CONFIG, QUICK
'''


@pytest.fixture(autouse=True)
def signals_arrive():
    """A shell lets what it starts in the background ignore Ctrl-C; the commands here are to meet it."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def fails_with(error, monkeypatch, arguments=("list",)):
    """The exit status where the experiments' names cannot be listed."""

    def fail():
        raise error

    monkeypatch.setattr(config, "names", fail)
    return command_line.main(list(arguments))


@pytest.mark.parametrize("error", [KeyError("spectrum"), RecursionError("too deep"), AssertionError()])
def test_an_unexpected_error_is_one_sentence_that_names_the_file_with_its_traceback(
    error, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert fails_with(error, monkeypatch) == 1
    (file,) = tmp_path.iterdir()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: unexpected {type(error).__name__}: ")
    assert line.endswith(f"(the traceback is in {file})")
    assert "in _list" in file.read_text()
    assert file.read_text().splitlines()[-1].startswith(type(error).__name__)


def test_without_a_place_for_it_the_traceback_is_printed(monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail)
    assert fails_with(KeyError("spectrum"), monkeypatch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == (
        "error: unexpected KeyError: 'spectrum' (no file for its traceback: [Errno 28] No space left on device)"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            MemoryError("Unable to allocate 9 TiB"),
            "the memory is full (Unable to allocate 9 TiB): close",
        ),
        (MemoryError(), "the memory is full (MemoryError): close other programs and run the same command again"),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 9 bytes.\nmore"),
            "the device is out of memory (INTERNAL: Out of memory allocating 9 bytes.): end other programs that use it",
        ),
    ],
)
def test_a_full_memory_has_a_remedy(error, message, monkeypatch, capsys):
    assert fails_with(error, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_an_error_without_words_is_named(monkeypatch, capsys):
    assert fails_with(ValueError(), monkeypatch) == 2
    assert capsys.readouterr().err == "error: ValueError\n"


def test_output_that_is_closed_by_its_reader_ends_the_command_in_silence(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert command_line.main(["list"]) == 141  # as of other tools: 128 and the number of SIGPIPE
    assert capsys.readouterr().err == ""


def test_output_on_a_full_disk_is_one_sentence(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command_line.main(["list"]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("folder", ["é", "結果", "\udcff"])
def test_names_that_a_terminal_cannot_show_are_escaped(folder, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setattr(config, "names", lambda: (folder,))
    monkeypatch.setattr(config, "check", lambda name: None)
    monkeypatch.setattr(config, "title", lambda name: "a title")
    assert command_line.main(["list"]) == 0
    assert command_line.main(["run", folder]) == 2
    for stream in streams:
        stream.flush()
    written = [stream.buffer.getvalue().decode("ascii") for stream in streams]
    escaped = folder.encode("ascii", "backslashreplace").decode()
    assert written[0] == f"{escaped}  a title\n"
    assert written[1].startswith("error: ")
    assert escaped in written[1]


def interrupted(number, monkeypatch):
    """Makes training send the process a signal."""
    monkeypatch.setattr("experiments.stages.run", lambda *_: signal.raise_signal(number))


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_a_signal_is_one_line_with_the_command_that_continues(number, name, status, tmp_path, monkeypatch, capsys):
    former = signal.getsignal(number)
    interrupted(number, monkeypatch)
    path = tmp_path / "the run"
    arguments = ["run", "digits", "--quick", "--set", "num_epochs=2", f"--folder={path}"]
    for more in ([], ["--fresh"]):  # which would remove what is to be continued
        assert command_line.main([*arguments, *more]) == status
        told = capsys.readouterr().err
        assert told == (
            f"interrupted by {name}: the results so far are in {path}; continue with: python -m experiments run digits "
            f"--quick --set num_epochs=2 '--folder={path}'\n"
        )
    assert path.is_dir()
    assert signal.getsignal(number) == former


def test_an_interruption_before_anything_is_written_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.stages.check", lambda *_: signal.raise_signal(signal.SIGINT))
    path = tmp_path / "run"
    assert command_line.main(["run", "digits", "--fresh", "--folder", str(path)]) == 130
    assert capsys.readouterr().err == (
        "interrupted by Ctrl-C before anything was written: start again with: python -m experiments run "
        f"digits --fresh --folder {path}\n"
    )
    assert not path.exists()


def test_a_finished_run_that_was_to_start_over_still_is(tmp_path, monkeypatch, capsys):
    """`--fresh` stays in the command where nothing has been removed yet."""
    (tmp_path / "checks.json").write_text("{}")
    monkeypatch.setattr(run, "run", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert command_line.main(["run", "digits", "--fresh", "--folder", str(tmp_path)]) == 130
    assert capsys.readouterr().err.rstrip().endswith(f"run digits --fresh --folder {tmp_path}")


@pytest.mark.parametrize("arguments", [["list"], ["audit", "results/digits"]])
def test_commands_that_keep_nothing_start_again(arguments, monkeypatch, capsys):
    for function in (f"experiments.{name}" for name in ("config.names", "run.check_finished")):
        monkeypatch.setattr(function, lambda *_: signal.raise_signal(signal.SIGTERM))
    assert command_line.main(arguments) == 143
    expected = "interrupted by SIGTERM: start again with: python -m experiments " + " ".join(arguments)
    assert capsys.readouterr().err == expected + "\n"


def test_an_interruption_that_jax_reports_as_its_own_error_is_one(monkeypatch, capsys):
    def stop(x):
        signal.raise_signal(signal.SIGINT)
        return x

    def compute():
        try:
            jax.block_until_ready(jax.pure_callback(stop, jax.ShapeDtypeStruct((), np.float32), np.float32(0)))
        except KeyboardInterrupt:  # where the callback had another thread
            raise jax.errors.JaxRuntimeError("INTERNAL: CpuCallback error: KeyboardInterrupt") from None

    monkeypatch.setattr(config, "names", compute)
    assert command_line.main(["list"]) == 130
    assert capsys.readouterr().err.startswith("interrupted by Ctrl-C: start again with: ")


def test_a_second_interruption_while_the_first_is_handled_is_still_one_line(monkeypatch, capsys):
    def compute():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(config, "names", compute)
    assert command_line.main(["list"]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_signals_that_the_process_ignores_stay_ignored(monkeypatch, capsys):
    """As with `nohup`, and in the background of a script."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(config, "names", lambda: signal.raise_signal(signal.SIGINT) or ("digits",))
        assert command_line.main(["list"]) == 0
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.fixture
def homeless(monkeypatch):
    """A user id that has no account, and no HOME."""
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that what is set while the test runs is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    with pytest.raises(RuntimeError, match="home directory"):
        pathlib.Path.home()


def test_a_user_without_a_home_directory_can_run(homeless, tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    settings = {name: jax.config.values[name] for name in names}
    monkeypatch.setattr(run, "run", lambda *_, **__: None)
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert command_line.main(["run", "digits"]) == 0
        assert jax.config.values["jax_compilation_cache_dir"] is None
        assert command_line.main(["run", "digits", "--cache-dir", str(tmp_path)]) == 0
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)
    finally:
        for name, value in settings.items():
            jax.config.update(name, value)


def test_matplotlib_has_a_folder_where_there_is_no_home_directory(homeless):
    """Without one it cannot be imported."""
    importlib.reload(command_line)
    assert pathlib.Path(os.environ["MPLCONFIGDIR"]).is_dir()


OPTIONS = [
    ["run", "--folder"],
    ["run", "--cache-dir"],
    ["scorecard", "--root"],
    ["benchmark", "--output"],
    ["benchmark", "--reference"],
    ["audit"],
    ["scorecard"],
]


@pytest.fixture
def parsed(monkeypatch):
    """The parsed arguments that the commands receive."""

    def parse(arguments):
        options = command_line._parser().parse_args(arguments)
        return {name: value for name, value in vars(options).items() if name != "command"}

    return parse


@pytest.mark.parametrize("arguments", [*OPTIONS, ["run", "--data-dir"]])
def test_a_home_directory_is_expanded_in_every_path(arguments, parsed, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    command, *option = arguments
    argument = f"{option[0]}=~/results" if option else "~/results"
    values = parsed([command, argument]).values()
    paths = {str(value) for each in values for value in (each if isinstance(each, list) else [each])}
    assert "/home/of/mine/results" in paths


@pytest.mark.parametrize("arguments", OPTIONS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x begins with an unknown home directory: write the full path"),
        ("\udcff", r"'\udcff' cannot be read in the encoding of file names, utf-8: set PYTHONUTF8=1"),
        ("", "expected a path, got an empty text"),
    ],
)
def test_a_path_that_cannot_be_one_is_refused(arguments, path, message, capsys):
    command, *option = arguments
    with pytest.raises(SystemExit) as error:
        command_line.main([command, f"{option[0]}={path}" if option else path])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", OPTIONS)
def test_a_working_directory_that_cannot_be_read_is_named(arguments, tmp_path, monkeypatch, capsys):
    """Not the path inside it, which can be read."""
    folder = tmp_path / "\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    command, *option = arguments
    with pytest.raises(SystemExit) as error:
        command_line.main([command, f"{option[0]}=inside" if option else "inside"])
    assert error.value.code == 2
    told = f"the working directory {str(folder)!r} cannot be read in the encoding of file names, utf-8: set PYTHONUTF8"
    assert told in capsys.readouterr().err


def test_an_absolute_path_is_taken_in_any_working_directory(parsed, tmp_path, monkeypatch):
    (tmp_path / "\udcff").mkdir()
    monkeypatch.chdir(tmp_path / "\udcff")
    assert parsed(["audit", "/a"])["folder"] == pathlib.Path("/a")


@pytest.fixture
def experiments_of_ones_own(tmp_path, monkeypatch):
    """Writes files of experiments beside those of the project."""
    monkeypatch.setattr(configs, "__path__", [*configs.__path__, str(tmp_path)])
    before = set(sys.modules)

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_empty_folder_of_data_sets_is_as_if_unset(parsed):
    assert not parsed(["run", "--data-dir="])["data_dir"]


BAD = {
    "syntax": ("def", "cannot be imported (SyntaxError: "),
    "field": (
        "from experiments.diagonal import DiagonalMargins\nCONFIG = DiagonalMargins(size=3)",
        "cannot be imported (TypeError: ",
    ),
    "value": ("from experiments.configs import _mnist\n1 / 0", "cannot be imported (ZeroDivisionError: "),
    "no_checks": (GOOD + "del CHECKS", "defines no CHECKS: an experiment has CONFIG, QUICK and CHECKS"),
    "no_quick": (GOOD + "del QUICK", "defines no QUICK: "),
    "no_config": (GOOD + "del CONFIG", "defines no CONFIG: "),
    "other_config": (GOOD + "CONFIG = {}", "must be a configuration, such as DiagonalMargins(...), got dict"),
    "one_check": (GOOD + "CHECKS = CHECKS[0]", "CHECKS in experiments/configs/one_check.py must be a tuple of Check"),
    "checks_of_text": (GOOD + "CHECKS = ('grows',)", "must be a tuple of Check, got tuple"),
    "no_docstring": (
        GOOD.partition("\n")[2],
        "has no docstring: begin it with one, because `list` shows its first line",
    ),
}


def test_list_shows_every_experiment_and_what_is_wrong_with_bad_ones(experiments_of_ones_own, capsys):
    there = config.names()
    experiments_of_ones_own(mine=GOOD, **{name: text for name, (text, _) in BAD.items()})
    assert command_line.main(["list"]) == 2
    printed = capsys.readouterr()
    lines = {line.split()[0]: line for line in printed.out.splitlines()}
    assert set(lines) == {*there, "mine", *BAD}
    assert lines["mine"].endswith("  An experiment of one's own.")
    for name, (_, message) in BAD.items():
        assert f"experiments/configs/{name}.py" in lines[name]
        assert message in lines[name]
    assert sum("error: " in line for line in lines.values()) == len(BAD)
    count = f"{len(BAD)} of {len(there) + len(BAD) + 1} experiments"
    assert printed.err == f"error: {count} cannot be run: their lines above say why\n"


@pytest.mark.parametrize("name", ["syntax", "no_checks"])
def test_a_bad_experiment_is_named_when_it_is_to_run(name, experiments_of_ones_own, tmp_path, capsys):
    text, message = BAD[name]
    experiments_of_ones_own(**{name: text})
    assert command_line.main(["run", name, "--folder", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: experiments/configs/{name}.py ")
    assert message in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "audit",
            ["--num-images", "31"],
            "--num-images 31 is more than the 30 images of the run in {}: lower it to at most",
        ),
        ("accuracy", ["--num-images", "31"], "--num-images 31 is more than the 30 images of the run in {}: lower it"),
        ("audit", ["--certify", "31"], "--certify 31 is more than the 30 images that are measured: raise --num-images"),
        ("audit", ["--num-images", "5", "--certify", "6"], "--certify 6 is more than the 5 images that are measured"),
    ],
)
def test_more_images_than_a_run_has_are_refused(command, arguments, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "digits", "num_images": 30}))
    (tmp_path / "checks.json").write_text("{}")
    assert command_line.main([command, str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: " + message.format(tmp_path))


def test_a_run_of_few_images_is_audited_on_all_of_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "digits", "num_images": 30}))
    (tmp_path / "checks.json").write_text("{}")
    monkeypatch.setattr("experiments.audit.audit", lambda *_, num_images, **__: f"{num_images} images")
    assert command_line.main(["audit", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "30 images\n"
