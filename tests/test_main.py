"""The command line where something goes wrong: what it prints, and its exit status."""

import ast
import io
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import pytest

from experiments import __main__ as command_line
from experiments import catalogue, registry, run, store

ROOT = pathlib.Path(__file__).parent.parent


def fails_with(error, monkeypatch):
    """The exit status if the experiments' names cannot be listed."""

    def fail():
        raise error

    monkeypatch.setattr(registry, "names", fail)
    return command_line.main(["list"])


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
    assert "in run" in file.read_text()
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
def test_names_that_a_terminal_cannot_show_are_escaped(folder, tmp_path, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    digits = registry.get("digits")
    monkeypatch.setattr(registry, "names", lambda: (folder,))
    monkeypatch.setattr(catalogue, "TABLES", {"a table": {folder: digits}})
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["list"]) == 0
    assert command_line.main(["run", folder]) == 2
    for stream in streams:
        stream.flush()
    written = [stream.buffer.getvalue().decode("ascii") for stream in streams]
    escaped = folder.encode("ascii", "backslashreplace").decode()
    assert written[0] == f"a table:\n  {escaped}  {digits.title}\n"
    assert written[1].startswith("error: unknown experiment ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 75)]
)
def test_a_signal_is_one_line_with_the_command_that_goes_on(number, name, status, tmp_path):
    path = tmp_path / "the run"
    arguments = ["run", "digits", "--num-epochs", "1000", f"--folder={path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments, "--fresh"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (path / "checkpoints").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == status
    assert told.splitlines()[-1] == (
        f"stopped by {name}: the results so far are in {path}; go on with: python -m experiments run digits "
        f"--num-epochs 1000 '--folder={path}'"
    )
    assert not any(file.name.startswith(".hmt_jax-part") for file in path.rglob("*"))


def test_what_to_do_after_a_signal_depends_on_what_is_there(tmp_path):
    path = tmp_path / "run"
    arguments = ["run", "digits", "--fresh", "--folder", str(path)]
    command = command_line._parsed(arguments)
    typed = f"python -m experiments run digits --fresh --folder {path}"
    assert command.remedy(typed) == f"nothing was written; start again with: {typed}"
    path.mkdir()
    without = typed.replace(" --fresh", "")  # which would remove what is to be continued
    assert command.remedy(typed) == f"the results so far are in {path}; go on with: {without}"
    store.finish(path, {})
    assert command.remedy(typed).endswith(f"go on with: {typed}")  # nothing has been removed yet
    typed = "python -m experiments list"
    assert command_line._parsed(["list"]).remedy(typed) == f"start again with: {typed}"


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


def test_matplotlib_is_imported_where_there_is_no_home_directory():
    """As releases before 3.11 are not."""
    code = "import os; os.getuid = lambda: 2**31 - 5; import matplotlib"
    environment = {name: value for name, value in os.environ.items() if name == "PATH"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


OPTIONS = [
    ["run", "--folder"],
    ["list", "--results"],
    ["benchmark", "--output"],
    ["benchmark", "--reference"],
    ["audit"],
    ["compare-solvers"],
]


@pytest.mark.parametrize("arguments", OPTIONS)
def test_a_home_directory_is_expanded_in_every_path(arguments, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    command, *option = arguments
    parsed = command_line._parsed([command, f"{option[0]}=~/results" if option else "~/results"])
    assert pathlib.Path("/home/of/mine/results") in vars(parsed).values()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-of-this-name/x", "but the home directory ~nobody-of-this-name is not known"),
        ("\udcff", "is not in UTF-8: choose another, or set PYTHONUTF8=1"),
        ("", "expected a path, got an empty text"),
    ],
)
def test_a_path_that_cannot_be_one_is_refused(path, message, capsys):
    for arguments in OPTIONS:
        command, *option = arguments
        assert command_line.main([command, f"{option[0]}={path}" if option else path]) == 2
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in told


def test_an_empty_folder_of_data_sets_is_as_if_unset(monkeypatch):
    found = []
    monkeypatch.setattr(run, "run", lambda *_, data_dir, **__: found.append(data_dir))
    assert command_line.main(["run", "--data-dir="]) == 0
    assert found == [None]


def test_list_groups_by_data_set_and_shows_what_has_been_run(tmp_path, capsys):
    for name, verdicts in (("digits", [True, False]), ("mnist_lenet_quick", [True]), ("mnist_lenet_robust", None)):
        path = tmp_path / name
        path.mkdir()
        store.write_json(path / "config.json", store.to_json("digits", registry.get("digits").config))
        if verdicts is not None:
            store.finish(path, {"claims": [{"holds": holds} for holds in verdicts], "is_quick": False})
    (tmp_path / "mnist_resnet18").mkdir()
    (tmp_path / "mnist_resnet18" / "config.json").write_text('{"experiment": "mnist_resnet18"}')
    assert command_line.main(["list", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if not line.startswith(" ")]
    assert headings == [f"{heading}:" for heading in catalogue.TABLES]
    shown = {line.split()[0]: line.split("  ", 2)[2].strip() for line in lines if line.startswith(" ")}
    assert list(shown) == list(registry.names())
    states = {name: text.partition("  [")[2] for name, text in shown.items() if "  [" in text}
    assert states == {
        "digits": "1 of 2 claims hold]",
        "mnist_lenet": "quick form 1 of 1 claims hold]",
        "mnist_lenet_robust": "unfinished]",
        "mnist_resnet18": "not readable]",
    }
    for name, text in shown.items():
        assert text.partition("  [")[0] == registry.get(name).title


def test_help_has_every_setting_with_its_sentence_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert command_line.main(["run", "mnist_lenet", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("--num-epochs INT" in line and "epochs of training. (default: 30)" in line for line in lines)
    config = registry.get("mnist_lenet").config
    text = "\n".join(lines)
    for field in vars(config):
        assert f"--{field.replace('_', '-')} " in text
    assert text.count("(default: ") >= len(vars(config))
    for inherited in ("seed of everything random. (default: 0)", "most steps of DeepFool. (default: 100)"):
        assert inherited in text
    assert command_line.main(["run", "mnist_lenet", "--quick", "--help"]) == 0
    assert "epochs of training. (default: 2)" in capsys.readouterr().out


def test_a_mistyped_setting_or_experiment_suggests_the_nearest(capsys):
    assert command_line.main(["run", "mnist_lenet", "--num-epoch", "2"]) == 2
    told = capsys.readouterr().err
    assert "Perhaps you meant" in told
    assert "--num-epochs" in told
    assert command_line.main(["run", "mnist_lenet", "--seed", "1", "--seed", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: --seed is there twice: pass it once")
    assert command_line.main(["run", "mnist_lenet_flip"]) == 2
    assert (
        capsys.readouterr().err == "error: unknown experiment 'mnist_lenet_flip': did you mean 'mnist_lenet_flipped'?\n"
    )


def put_finished(path):
    """The folder of a finished run of 30 images."""
    described = store.to_json("digits", registry.get("digits").config)
    store.write_json(path / "config.json", {**described, "settings": {**described["settings"], "num_images": 30}})
    store.finish(path, {})


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "audit",
            ["--num-images", "31"],
            "--num-images 31 is more than the 30 images of the run in {}: lower it to at most",
        ),
        ("compare-solvers", ["--num-images", "31"], "--num-images 31 is more than the 30 images of the run in {}: low"),
        ("audit", ["--certify", "31"], "--certify 31 is more than the 30 images that are measured: raise --num-images"),
        ("audit", ["--num-images", "5", "--certify", "6"], "--certify 6 is more than the 5 images that are measured"),
    ],
)
def test_more_images_than_a_run_has_are_refused(command, arguments, message, tmp_path, capsys):
    put_finished(tmp_path)
    assert command_line.main([command, str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: " + message.format(tmp_path))


def test_a_run_of_few_images_is_audited_on_all_of_them(tmp_path, monkeypatch, capsys):
    put_finished(tmp_path)
    monkeypatch.setattr("experiments.analyses.audit.audit", lambda *_, num_images, **__: f"{num_images} images")
    assert command_line.main(["audit", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "30 images\n"


def test_imports_only_go_down():
    """Each module of experiments imports from those above it in this list alone."""
    order = [
        "manipulations",
        "store",
        "claims",
        "experiment",
        "report",
        "images",
        "given_weights",
        "synthetic",
        "families",
        "frequency_map",
        "small_networks",
        "generalization",
        "analyses.gallery",
        "catalogue._claims",
        "catalogue._forms",
        "catalogue.digits",
        "catalogue.mnist",
        "catalogue.cifar10",
        "catalogue.imagenet",
        "catalogue.synthetic",
        "catalogue.beyond_the_paper",
        "catalogue.families",
        "catalogue.frequency_map",
        "catalogue.generalization",
        "catalogue",
        "registry",
        "records",
        "tables",
        "page",
        "run",
        "analyses.audit",
        "analyses.compare_solvers",
        "benchmarks.timing",
        "benchmarks.workloads",
        "benchmarks.reference",
        "benchmarks.margins",
        "benchmarks.training",
        "benchmarks.suite",
        "benchmarks.cost",
        "benchmarks.processes",
        "benchmarks.soak",
        "benchmarks.families",
        "__main__",
    ]
    packages = {"", "analyses", "benchmarks"}  # which hold a docstring
    found = {
        ".".join(file.relative_to(ROOT / "experiments").with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip("."): file
        for file in (ROOT / "experiments").rglob("*.py")
    }
    assert set(order) == set(found) - packages
    upward = [
        f"{name} imports {imported}"
        for name in order
        for imported in imports_of(found[name], found)
        if imported not in packages and order.index(imported) >= order.index(name)
    ]
    assert not upward


def imports_of(file, known):
    """The modules of experiments that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            parts = path.split(".")
            if parts[0] == "experiments":
                names = [".".join(parts[1:end]) for end in range(len(parts), 0, -1)]
                yield next(name for name in names if name in known)
