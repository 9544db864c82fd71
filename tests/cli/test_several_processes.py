"""Several processes that measure one store: `hmt measure` with a coordinator, in a job array, and when one dies."""

import json
import signal
import socket
import time

import jax
import numpy as np
import pytest
from workspace import MEASURE, start

import hmt_jax
from hmt_jax.cli import _processes

PATIENCE = 200  # seconds after which a test fails; none waits as long if all is well


@pytest.fixture
def launch(folder, tmp_path):
    """Starts `hmt measure` as some of the processes that meet on this machine; none outlives the test."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "many.npy", rng.uniform(size=(4000, 8, 8, 1)).astype("f4"))
    settings = ["--model", "cli_models:make", "--cache-dir", str(tmp_path / "cache")]
    started = []

    def start_all(out, count, *, images=tmp_path / "many.npy", chunk_size=100, solver="tight:fast"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--num-processes", str(count)]
        command = ["measure", *settings, "--images", str(images), "--chunk-size", str(chunk_size), "--solver", solver]
        command += ["--out", str(tmp_path / out), *(meeting if count > 1 else [])]
        together = [start(*command, *(["--process-id", str(i)] if count > 1 else [])) for i in range(count)]
        started.extend(together)
        return together

    yield start_all
    for process in started:
        process.kill()
        process.communicate()


def finished(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def contents(path):
    """Every file of a store but that of its attributes, which name times and processes."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()} | {
        "zarr.json": b""
    }


def times(path):
    return {file.name: file.stat().st_mtime_ns for file in (path / "status" / "c" / "0").iterdir()}


@pytest.mark.slow
def test_processes_that_meet_fill_one_store(launch, tmp_path):
    ends = [finished(process) for process in launch("m.zarr", 2, images="images.npy", chunk_size=1, solver="deepfool")]
    assert [code for code, *_ in ends] == [0, 0]
    assert all("error" not in err for *_, err in ends)
    store = hmt_jax.MarginStore.open(tmp_path / "m.zarr")
    assert (store.missing(), store.verify()) == ([], [])
    assert [run["num_processes"] for run in store.attributes["runs"]] == [2]
    for number, (_, out, _) in enumerate(ends):  # the last one prints the table, or both if they end together
        assert out.startswith((f"process {number} of 2 has measured its share of ", f"{tmp_path / 'm.zarr'}: "))
    assert any(out.startswith(f"{tmp_path / 'm.zarr'}: ") for _, out, _ in ends)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_store_of_several_processes_is_that_of_one_bit_for_bit(count, launch, tmp_path):
    for name, number in {"alone.zarr": 1, "shared.zarr": count}.items():
        assert [finished(process)[0] for process in launch(name, number)] == number * [0]
    assert contents(tmp_path / "shared.zarr") == contents(tmp_path / "alone.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_costs_its_chunk_in_flight(killed, launch, tmp_path):
    """Also the one that the others met at. Three processes then do what it left."""
    path = tmp_path / "m.zarr"
    both = launch("m.zarr", 2)
    while not (path / "status" / "c" / "0" / str(killed + 6)).exists():
        assert both[killed].poll() is None
        time.sleep(0.01)
    both[killed].send_signal(signal.SIGKILL)
    code, _, err = finished(both[1 - killed])
    assert (code, err) == (0, "")
    store = hmt_jax.MarginStore.open(path)
    missing = store.missing()
    assert missing
    assert {number % 2 for number in missing} == {killed}
    before = times(path)
    ends = [finished(process) for process in launch("m.zarr", 3)]
    assert [code for code, *_ in ends] == [0, 0, 0]
    assert store.missing() == []
    assert {name: time for name, time in times(path).items() if name in before} == before  # none was measured again
    assert [finished(process)[0] for process in launch("alone.zarr", 1)] == [0]
    assert contents(path) == contents(tmp_path / "alone.zarr")


@pytest.mark.slow
def test_sigterm_ends_processes_that_have_met_as_it_ends_one(launch, tmp_path):
    both = launch("m.zarr", 2)
    for number, process in enumerate(both):
        while not (tmp_path / "m.zarr" / "status" / "c" / "0" / str(number)).exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        code, _, err = finished(process)
        assert code == 75
        assert err.startswith("\nstopped by SIGTERM: ")


# In this process


@pytest.mark.slow
def test_numbers_without_a_coordinator_are_shares(hmt, folder, tmp_path):
    command = [*MEASURE[:-1], tmp_path / "m.zarr", "--chunk-size", 2, "--num-processes", 2, "--process-id"]
    code, out, err = hmt(*command, 1)
    assert (code, err) == (0, "")
    path = tmp_path / "m.zarr"
    assert out == f"process 1 of 2 has measured its share of {path}; 2 of 3 chunks are missing\n"
    code, out, err = hmt(*command, 0)
    assert (code, err) == (0, "")
    assert "chunks are not measured" not in out
    assert hmt_jax.MarginStore.open(path).missing() == []


def test_without_numbers_a_process_measures_all(monkeypatch):
    assert _processes.join(None, None, None) == (0, 1)  # JAX runs here already
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    assert _processes.join(None, None, None) == (3, 5)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_the_only_process_of_a_job_meets_nobody(name, meeting, monkeypatch):
    """JAX would give it a single one of the devices of its machine."""
    meeting(fails(AssertionError("met")))
    monkeypatch.setenv(name, "1")
    assert _processes.join(None, None, None) == (0, 1)
    monkeypatch.setenv(name, "2")
    with pytest.warns(UserWarning, match=r"can't use it \(met\)"):
        _processes.join(None, None, None)


@pytest.fixture
def meeting(monkeypatch):
    """Replaces JAX's part in a meeting by a function."""

    def replaced(function):
        monkeypatch.setattr(jax.distributed, "initialize", function)

    return replaced


def fails(error):
    def initialize(**_):
        raise error

    return initialize


def test_a_cluster_that_jax_cannot_use_gives_a_warning(meeting):
    meeting(fails(RuntimeError("Kubernetes API Error: 403\nand more")))
    with pytest.warns(
        UserWarning, match=r"^JAX recognises a cluster here, but can't use it \(Kubernetes API Error: 403\): t"
    ):
        assert _processes.join(None, None, None) == (0, 1)
    meeting(fails(ValueError("coordinator_address should be defined.")))
    assert _processes.join(None, None, None) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here", 2, 0), r"^--coordinator must be HOST:PORT, such as 10\.0\.0\.1:4321, got 'here'$"),
        ((":1", 2, 0), r"^--coordinator must be HOST:PORT"),
        (("a:0", 2, 0), r"^--coordinator must be HOST:PORT"),
        (("a:65536", 2, 0), r"^--coordinator must be HOST:PORT"),
        (("a:1", 2, 2), r"^--process-id must be from 0 to 1, got 2: processes count from 0$"),
        ((None, 2, 2), r"^--process-id must be from 0 to 1, got 2: processes count from 0$"),
        ((None, 2, None), r"^--num-processes and --process-id belong together: pass both, or neither$"),
        ((None, None, 0), r"^--num-processes and --process-id belong together: pass both, or neither$"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        _processes.join(*arguments)


def test_processes_that_do_not_come_are_waited_for_in_vain(meeting, monkeypatch):
    monkeypatch.setattr(_processes, "_PATIENCE", 0.1)
    meeting(lambda **_: time.sleep(1))
    message = (
        r"^the other processes did not come within 0\.1 seconds: start all of them together, with process ids of their "
        r"own, or pass --num-processes 1 --process-id 0 to measure in this one alone$"
    )
    with pytest.raises(ValueError, match=message):
        _processes.join("127.0.0.1:1", 2, 0)


def test_a_coordinator_alone_is_not_enough(meeting):
    meeting(fails(ValueError("Number of processes must be defined.")))
    message = r"^the processes can't meet \(JAX recognises no cluster here\): pass --num-processes and --process-id$"
    with pytest.raises(ValueError, match=message):
        _processes.join("127.0.0.1:1", None, None)


def test_a_port_that_is_taken_has_another_remedy(meeting):
    meeting(fails(RuntimeError("UNKNOWN: Failed to start RPC server")))
    message = r"\(UNKNOWN: Failed to start RPC server\): choose a --coordinator whose port is free on the machine of"
    with pytest.raises(ValueError, match=message):
        _processes.join("127.0.0.1:1", 2, 0)


def test_a_process_without_a_share_is_no_error(hmt, folder, tmp_path):
    """There are three chunks, and none is measured when the last of eight processes ends."""
    command = [*MEASURE[:-1], tmp_path / "m.zarr", "--chunk-size", 2, "--num-processes", 8, "--process-id", 7]
    code, out, err = hmt(*command, "--report", tmp_path / "page.html")
    assert (code, err) == (0, "")
    assert out.endswith("; 3 of 3 chunks are missing\n")
    code, out, err = hmt(*command, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["num_images"], found["num_measured"], found["summary"]) == (6, 0, None)


def test_numbers_on_the_command_line(hmt, folder):
    for option, value in {"--num-processes": "0", "--process-id": "-1"}.items():
        code, _, err = hmt(*MEASURE, option, value)
        assert code == 2
        assert "expected a whole number, at least" in err
