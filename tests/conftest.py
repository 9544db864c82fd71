"""Options, a strict world for every test, and fixtures that several files use; functions are in helpers.py."""

import faulthandler
import gc
import os
import pathlib
import sys

import fresh
import jax
import numpy as np
import pytest
from helpers import shared_folder

import hmt_jax
from hmt_jax import data, models

# With everything that it compiles on a busy machine.
_SECONDS_FOR_ONE_INPUT = 240


def pytest_addoption(parser):
    parser.addoption(
        "--shared",
        default=os.environ.get("HMT_JAX_SHARED"),
        help="folder with reference/ and tfds/: results of the authors' code, and prepared data sets; "
        "HMT_JAX_SHARED if not given",
    )
    parser.addoption(
        "--all-twins",
        action="store_true",
        help="compare every network with PyTorch at two sizes in both precisions, which takes half an hour on 2 cores",
    )
    parser.addoption(
        "--examples",
        type=int,
        default=200,
        help="random inputs of tests/test_hostile.py, and a tenth as many hostile ones; 10000 take ten minutes",
    )


def pytest_configure(config):
    # Simulated devices must be asked for before JAX is first used.
    jax.config.update("jax_num_cpu_devices", 8)
    # Tests compile much and run little, and what is left out here changes their rounding alone.
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):  # later ones know no such flag
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    # Modules and tests stay to the end: looking for garbage among them would take a twentieth of the time.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Keeps what is compiled out of the user's cache, and for later tests, which compile much of it again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file():
    """Lets go of what a file's tests have compiled.

    All programs of all files are more than a process may map into its memory on Linux, 65,530 regions: XLA then ends
    it with a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def optimised():
    """For tests that run more than they compile, or that are about what users run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Everything in a test that asks for it may be float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def num_examples(request) -> int:
    """The number of random inputs."""
    return request.config.getoption("--examples")


@pytest.fixture
def watch(request):
    """A function that is called before each input. The process ends with the stacks of its threads if one hangs."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        stderr = os.dup(2)
    yield lambda: faulthandler.dump_traceback_later(_SECONDS_FOR_ONE_INPUT, exit=True, file=stderr)
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)


@pytest.fixture(scope="session")
def shared(request) -> pathlib.Path:
    """The folder of reference results and prepared data sets."""
    path = shared_folder(request.config.getoption("--shared"))
    if path is None:
        pytest.skip("compares with data outside the project: give its folder with --shared or HMT_JAX_SHARED")
    return path


@pytest.fixture(scope="session")
def mnist(shared) -> data.Dataset:
    """The full MNIST, which takes seconds to decode."""
    return data.load("mnist", shared / "tfds")


@pytest.fixture(scope="session")
def reference(shared) -> dict[str, np.ndarray]:
    """Margins of a LeNet on 40 MNIST test images, from the authors' code in float64."""
    with np.load(shared / "reference" / "lenet_mnist_deepfool_float64.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def reference_lenet(reference) -> models.Normalized:
    """The LeNet of the reference results."""
    weights = {name.removeprefix("weights/"): reference[name] for name in reference if name.startswith("weights/")}
    return hmt_jax.models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,))


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A folder with the library's wheel and its source distribution."""
    folder = tmp_path_factory.mktemp("packages")
    fresh.build(folder)
    return folder


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A folder with images, models and stores, for all tests of the command line."""
    import workspace  # of tests/cli

    folder = tmp_path_factory.mktemp("cli")
    workspace.fill(folder)
    return folder


@pytest.fixture
def folder(filled, monkeypatch):
    """The folder with images, models and stores, as the working directory."""
    monkeypatch.chdir(filled)
    monkeypatch.setattr("sys.path", [*sys.path])
    return filled


@pytest.fixture
def hmt(folder, capsys):
    """Runs `hmt` here; returns its exit code, and what it has printed on stdout and on stderr."""
    import workspace

    return lambda *arguments: workspace.run(capsys, *arguments)
