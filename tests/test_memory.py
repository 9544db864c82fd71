"""The memory that a process may use, with and without limits."""

import math
import os
import resource
import subprocess
import sys

import pytest

from hmt_jax import _memory

GIB = 2**30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Sets the control groups of this process, and the limits in their files."""

    def set_groups(text, limits):
        (tmp_path / "groups").write_text(text)
        for name, content in limits.items():
            file = tmp_path / "root" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        monkeypatch.setattr(_memory, "_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(_memory, "_ROOT", tmp_path / "root")

    return set_groups


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": f"{GIB}\n"}, GIB),  # in a container
        ("0::/job/step\n", {"job/step/memory.max": "max\n", "job/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/job/step\n", {"job/step/memory.max": f"{GIB}\n", "job/memory.max": f"{2 * GIB}\n"}, GIB),
        ("0::/elsewhere/job\n", {"memory.max": f"{GIB}\n"}, GIB),  # a container that sees the machine's path
        ("5:cpu:/\n4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": f"{GIB}\n"}, GIB),  # version 1
        ("0::/\n", {"memory.max": "max\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_the_least_limit_of_all_groups_counts(groups, limits, expected, system, monkeypatch):
    system(groups, limits)
    monkeypatch.setattr(_memory, "_of_machine", lambda: math.inf)
    monkeypatch.setattr(_memory, "_of_address_space", lambda: math.inf)
    assert _memory.limit() == expected


def test_without_limits_it_is_the_memory_of_the_machine(system):
    system("0::/\n", {})
    with open("/proc/meminfo") as file:
        kibibytes = int(file.readline().split()[1])
    assert _memory.limit() == 1024 * kibibytes


def test_the_limit_of_a_shell_counts():
    command = "from hmt_jax import _memory; print(_memory.limit())"
    limited = f"ulimit -v 3000000; exec {sys.executable} -c '{command}'"
    done = subprocess.run(
        ["sh", "-c", limited], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path[1:])}
    )
    assert float(done.stdout) == 3000000 * 1024
    assert resource.getrlimit(resource.RLIMIT_AS)[0] < 0  # here there is none


MEASURES = """
import pathlib, resource, warnings
import jax, numpy as np
import hmt_jax
from hmt_jax import models, solvers, subspaces

classifier = models.create("lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=10)
images = np.random.default_rng(0).uniform(size=(3000, 28, 28, 1)).astype("f4")
whole = subspaces.full((28, 28, 1))
few = hmt_jax.measure_margins(classifier, images, whole, solvers.DeepFool(), batch_size=100)
status = pathlib.Path("/proc/self/status").read_text()
[kibibytes] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize:")]
resource.setrlimit(resource.RLIMIT_AS, (1024 * kibibytes + 2**29, -1))
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    many = hmt_jax.measure_margins(classifier, images, whole, solvers.DeepFool(), batch_size=3000)
print(many.work.num_lanes, bool(many.is_converged.all()), np.abs(many.margin / few.margin - 1).max())
print(*(str(each.message) for each in warned), sep="\\n")
"""


@pytest.mark.slow
def test_memory_that_runs_out_on_cpu_halves_the_batch_and_says_so():
    """3000 pairs of a LeNet take more than the half gibibyte that is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURES], capture_output=True, text=True, check=True, env=environment, timeout=300
    )
    found, *warned = done.stdout.splitlines()
    num_lanes, is_converged, difference = found.split()
    assert int(num_lanes) in (1500, 750, 375)
    assert is_converged == "True"
    assert float(difference) < 1e-3  # of single precision, in batches of another size
    assert warned[-1] == f"out of memory: going on with {num_lanes} lanes on each device"
