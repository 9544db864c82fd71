"""Classifiers in files that need none of their code: compared with the classifiers that they were exported from."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import NamedTuple

import equinox
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import linen, nnx
from helpers import random_images, random_network, slow_except, solve_all, tanh_classifier, tanh_logits, tanh_parameters
from safetensors.numpy import load_file, save_file

import hmt_jax
from hmt_jax import _devices, _exported, _exported_files, attacks, classifiers, models, solvers, subspaces
from hmt_jax.margins import _sizes
from hmt_jax.models import densenet

SHAPE = (5, 4, 2)


class Weights(NamedTuple):
    first: jax.Array
    first_bias: jax.Array
    second: jax.Array
    second_bias: jax.Array

    def __call__(self, images):
        return tanh_logits(self, images)


class NnxNetwork(nnx.Module):
    def __init__(self, weights):
        self.hidden = nnx.Linear(40, 8, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(8, 5, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))  # whose random key is part of the module
        self.hidden.kernel[...], self.hidden.bias[...] = weights.first.T, weights.first_bias
        self.head.kernel[...], self.head.bias[...] = weights.second.T, weights.second_bias
        self.eval()

    def __call__(self, images):
        return self.head(self.dropout(jnp.tanh(self.hidden(images.reshape(len(images), -1)))))


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, images):
        hidden = jnp.tanh(linen.Dense(8, name="hidden")(images.reshape(len(images), -1)))
        return linen.Dense(5, name="head")(hidden)


class EquinoxNetwork(equinox.Module):
    weights: Weights
    scale: float = 1.0

    def __call__(self, images):
        return self.scale * self.weights(images)


def bound_linen(weights):
    first, first_bias, second, second_bias = weights
    layers = {
        "hidden": {"kernel": first.T, "bias": first_bias},
        "head": {"kernel": second.T, "bias": second_bias},
    }
    return LinenNetwork().bind({"params": layers})


KINDS = {
    "Partial": lambda weights: jax.tree_util.Partial(tanh_logits, weights),
    "NamedTuple": lambda weights: weights,
    "NNX": NnxNetwork,
    "Linen": bound_linen,
    "Equinox": EquinoxNetwork,
    "function": lambda weights: lambda images: weights(images),
    "jit": lambda weights: jax.jit(lambda images: weights(images)),
}


def random_weights(seed=0):
    return Weights(*(jnp.asarray(leaf, jnp.float32) for leaf in tanh_parameters(seed)))


def exported(classifier, path, image_shape=SHAPE):
    hmt_jax.save_exported(classifier, image_shape, path)
    return hmt_jax.load_exported(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.safetensors"


@jax.jit
def logits_and_gradients(classifier, images):
    """Logits, and the gradients of every class, with the forward pass taken once."""
    with jax.default_matmul_precision("highest"):
        logits, pull_back = jax.vjp(classifier, images)
        ones = jnp.broadcast_to(jnp.eye(logits.shape[1])[:, None], (logits.shape[1], *logits.shape))
        return logits, jax.vmap(lambda gradient: pull_back(gradient.astype(logits.dtype))[0])(ones)


def assert_same(classifier, original, images, rtol=1e-6):
    """Logits and gradients agree up to the rounding of sums, which programs of other batches order otherwise."""
    for found, expected in zip(
        logits_and_gradients(classifier, images), logits_and_gradients(original, images), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


# What is computed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_classifier_computes_the_same_without_its_code(kind, path):
    weights = random_weights()
    first, first_bias, second, second_bias = (np.asarray(weight, np.float64) for weight in weights)
    classifier = exported(KINDS[kind](weights), path)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(classifiers.as_pytree(classifier)))
    for num_images in (1, 3, 64):
        images = random_images(num_images, *SHAPE, seed=num_images, dtype="float32")
        hidden = np.tanh(images.reshape(num_images, -1) @ first.T + first_bias)
        by_images = ((1 - hidden**2)[:, None] * second) @ first
        logits, gradients = logits_and_gradients(classifier, images)
        # Sums of 40 numbers of the order of 1, in float32.
        np.testing.assert_allclose(logits, hidden @ second.T + second_bias, rtol=0, atol=2e-5)
        np.testing.assert_allclose(np.moveaxis(gradients, 0, 1).reshape(by_images.shape), by_images, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("num_channels", slow_except([1, 3], 1))
def test_lenet_is_exported_for_any_number_of_images(num_channels, path):
    statistics = {"mean": [0.1] * num_channels, "std": [0.5] * num_channels}
    network = random_network("lenet", (14, 13, num_channels), **statistics)
    classifier = exported(network, path, (14, 13, num_channels))
    original = classifiers.as_pytree(network)
    assert_same(classifier, original, random_images(3, 14, 13, num_channels, dtype="float32"))
    # Slices of arrays with a symbolic axis easily become gathers, which are several times slower.
    assert not any("gather" in function.mlir_module() for function in classifier.network.functions)


def random_weights_of(name, image_shape):
    """A network with random weights, fit for batch norm, whose variances must be positive."""
    rng = np.random.default_rng(0)
    classifier = nnx.eval_shape(lambda: models.create(name, jax.random.key(0), image_shape=image_shape, num_classes=4))
    classifier.eval()
    graph, parameters = nnx.split(classifier)

    def weights(leaf):
        if len(leaf.shape) < 2:
            return rng.uniform(0.5, 1, leaf.shape).astype(np.float32)
        bound = 2 / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(weights(leaf)), parameters))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_cifar", pytest.param("resnet18_cifar", marks=pytest.mark.slow)])
def test_deep_networks_compute_the_same(name, path):
    network = random_weights_of(name, (32, 32, 3))
    classifier = exported(network, path, (32, 32, 3))
    assert_same(classifier, classifiers.as_pytree(network), random_images(2, 32, 32, 3, dtype="float32"))


@pytest.mark.parametrize(
    "name",
    slow_except(
        ["logistic", "mlp", "resnet18", "resnet18_cifar", "vgg11_bn", "vgg11_cifar", "densenet121_cifar"],
        "mlp",
        "resnet18_cifar",
    ),
)
def test_networks_are_exported_for_all_platforms(name, monkeypatch):
    monkeypatch.setitem(densenet.NUM_LAYERS, 121, (2, 2, 2, 2))  # parts of all kinds, in a tenth of the time
    network = classifiers.as_pytree(
        nnx.eval_shape(lambda: models.create(name, jax.random.key(0), image_shape=(32, 32, 3), num_classes=4))
    )
    # Arrays of the right shapes that take no memory.
    network = jax.tree.map(lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape), network)
    _, exported_network, num_classes = _exported.export(network, (32, 32, 3))
    assert (num_classes, exported_network.platforms) == (4, ("cpu", "cuda", "tpu"))


@pytest.mark.parametrize("name", ["lenet", "vgg11_cifar"])
def test_networks_are_lowered_by_jax_for_any_number_of_images(name):
    graph, parameters = nnx.split(random_weights_of(name, (32, 32, 3)))
    (number,) = jax.export.symbolic_shape("n")
    network = jax.jit(lambda parameters, images: nnx.merge(graph, parameters)(images))
    lowered = jax.export.export(network)(parameters, jax.ShapeDtypeStruct((number, 32, 32, 3), jnp.float32))
    assert lowered.out_avals[0].shape == (number, 4)
    assert lowered.vjp().out_avals[-1].shape == (number, 32, 32, 3)


# All ways in which solvers call a classifier: for gradients of several classes or of two, and at many points at once.
SOLVERS = [
    *(solvers.DeepFool(), solvers.ClosestPoint(), solvers.DDN(num_steps=20), solvers.Scan(num_angles=8)),
    solvers.Walk(num_steps=3, num_rounds=2),
]


@pytest.fixture(scope="module")
def tanh_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tanh.safetensors"
    hmt_jax.save_exported(tanh_classifier(dtype=jnp.float32), SHAPE, path)
    return path


@pytest.mark.parametrize("solver", slow_except(SOLVERS, solvers.DeepFool()), ids=repr)
def test_margins_are_those_of_the_original(solver, tanh_file):
    images = random_images(6, *SHAPE, dtype="float32")
    # Scan takes two dimensions at most, and here there are two channels.
    is_scan = isinstance(solver, solvers.Scan)
    subspace = subspaces.dct_window(SHAPE, row=0, column=1, size=1) if is_scan else subspaces.full(SHAPE)
    loaded = hmt_jax.load_exported(tanh_file)
    found, expected = (
        solve_all(classifier, images, subspace, solver) for classifier in (loaded, tanh_classifier(dtype=jnp.float32))
    )
    np.testing.assert_array_equal(found.status, expected.status)
    assert (np.isfinite(expected.margin) & (expected.margin > 0)).all()
    # The same program but for the order of sums; a margin is the end of several steps.
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-6)


@pytest.mark.slow
def test_measurements_on_several_devices_are_those_of_the_original(tanh_file):
    images = random_images(7, *SHAPE, dtype="float32")
    windows = subspaces.dct_diagonal(SHAPE, size=3, step=1)
    results = []
    for classifier in (hmt_jax.load_exported(tanh_file), tanh_classifier(dtype=jnp.float32)):
        settings = {"devices": jax.devices()[:2]}
        result = hmt_jax.measure_margins(
            classifier, images, windows, solvers.DeepFool(), keep_coordinates=True, **settings
        )
        results.append((result, hmt_jax.bisect(classifier, images, windows, result, **settings)))
    for found, expected in zip(*results, strict=True):
        assert expected.is_converged.all()
        np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-6)
    assert results[0][1].margin.sum() < results[0][0].margin.sum()


@pytest.mark.slow
def test_tight_margins_and_attacks_are_those_of_the_original(tanh_file):
    loaded, original = hmt_jax.load_exported(tanh_file), tanh_classifier(dtype=jnp.float32)
    images = random_images(4, *SHAPE, dtype="float32")
    found, expected = (
        solve_all(classifier, images, subspaces.full(SHAPE), solvers.tight("fast")) for classifier in (loaded, original)
    )
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-6)
    labels = np.argmax(original(images), 1)
    attack = attacks.PGD(norm="l2", epsilon=0.3, num_steps=5)
    results = [attacks.evaluate(each, images, labels, attack, jax.random.key(0)) for each in (loaded, original)]
    np.testing.assert_allclose(results[0].loss, results[1].loss, rtol=1e-6)
    assert results[1].loss > results[1].clean_loss


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_float64_is_kept(path):
    original = tanh_classifier()
    loaded = exported(original, path)
    images, subspace = random_images(5, *SHAPE), subspaces.full(SHAPE)
    assert loaded(images).dtype == jnp.float64
    assert_same(loaded, original, images, rtol=1e-14)
    found, expected = (solve_all(classifier, images, subspace) for classifier in (loaded, original))
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-12)


def test_batches_of_every_kind_are_one_call_with_more_images(tanh_file):
    loaded, original = hmt_jax.load_exported(tanh_file), tanh_classifier(dtype=jnp.float32)
    images = random_images(2, 3, 4, *SHAPE, dtype="float32")
    gradients = np.random.default_rng(1).normal(size=(6, 4, 5)).astype("float32")

    def of_batches(classifier, images):
        logits, pull_back = jax.vmap(lambda images: jax.vjp(classifier, images))(images)
        return logits, jax.vmap(lambda one: jax.vmap(lambda pull_back: pull_back(one)[0])(pull_back))(gradients)

    for found, expected in zip(*(of_batches(each, images[0]) for each in (loaded, original)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    nested = jax.vmap(jax.vmap(loaded))
    np.testing.assert_allclose(nested(images), jax.vmap(jax.vmap(original))(images), rtol=0, atol=1e-5)
    program = str(jax.make_jaxpr(nested)(images))
    assert program.count("call_exported[") == 1
    assert "scan" not in program


def test_networks_of_one_architecture_may_be_mapped_over(tmp_path):
    files = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    originals = [jax.tree_util.Partial(tanh_logits, random_weights(seed)) for seed in (0, 1)]
    loaded = [exported(original, file) for original, file in zip(originals, files, strict=True)]
    images = random_images(3, *SHAPE, dtype="float32")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loaded)

    def gradient(classifier):
        return jax.grad(lambda images: jnp.sin(classifier(images)).sum())(images)

    for function in (lambda classifier: classifier(images), gradient):
        np.testing.assert_allclose(
            jax.vmap(function)(stacked), [function(original) for original in originals], rtol=0, atol=1e-5
        )


def test_files_of_one_architecture_share_compiled_programs(tmp_path):
    loaded = [
        exported(jax.tree_util.Partial(tanh_logits, random_weights(seed)), tmp_path / f"{seed}.safetensors")
        for seed in (0, 1)
    ]
    compiled = jax.jit(lambda classifier, images: classifier(images))
    logits = [compiled(classifier, random_images(3, *SHAPE, dtype="float32")) for classifier in loaded]
    assert compiled._cache_size() == 1
    assert not np.allclose(*logits)


@pytest.mark.slow
def test_memory_is_planned_as_for_the_original(path):
    network = random_network("lenet", (28, 28, 1), mean=[0.1], std=[0.5])
    settings = {"num_lanes": None, "devices": jax.devices()[:1]}
    full = [(1, subspaces.full((28, 28, 1)))]
    sizes = [
        _sizes.choose(solvers.DeepFool(), each, full, (28, 28, 1), np.dtype("float32"), 10_000, **settings)
        for each in (exported(network, path, (28, 28, 1)), classifiers.as_pytree(network))
    ]
    assert sizes[0] == sizes[1]


def test_products_have_the_highest_precision_whatever_is_set_later(path):
    network = random_network("lenet", (14, 13, 1), mean=[0.1], std=[0.5])
    with jax.default_matmul_precision("bfloat16"):
        loaded = exported(network, path, (14, 13, 1))
    for function in loaded.network.functions:
        products = [line for line in function.mlir_module().splitlines() if "stablehlo.dot_general" in line]
        assert products
        assert all("HIGHEST" in line for line in products)


def test_what_a_network_chooses_by_platform_is_chosen_where_it_runs(path):
    def network(weights, images):
        def scaled(scale):
            return lambda logits: scale * jnp.sin(logits)

        logits = images.reshape(len(images), -1) @ weights
        return _devices.by_platform(logits, cpu=scaled(2.0), default=scaled(3.0))

    images = random_images(3, *SHAPE, dtype="float32")
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.float32)
    loaded = exported(jax.tree_util.Partial(network, weights), path)
    assert_same(loaded, jax.tree_util.Partial(network, weights), images)
    program = loaded.network.functions.forward.mlir_module()
    assert program.count("dense<2.000000e+00>") == program.count("dense<3.000000e+00>") == 1
    for platform in ("cuda", "tpu"):
        jax.jit(lambda images: loaded(images)).trace(images).lower(lowering_platforms=(platform,))


def test_networks_that_fit_one_platform_alone_are_exported_for_it(path, monkeypatch):
    def network(weights, images):
        return jax.lax.platform_dependent(images.reshape(len(images), -1) @ weights, cpu=jnp.sin)

    original = jax.tree_util.Partial(network, jnp.eye(40, 3))
    loaded = exported(original, path)
    assert loaded.network.platforms == ("cpu",)
    np.testing.assert_array_equal(loaded(jnp.ones((2, *SHAPE))), original(jnp.ones((2, *SHAPE))))
    monkeypatch.setattr(jax.export, "default_export_platform", lambda: "cuda")
    with pytest.raises(ValueError, match=r"was exported for cpu only, and JAX runs on cuda here: export the classifi"):
        hmt_jax.load_exported(path)


def test_arrays_of_types_that_numpy_lacks_are_kept(path):
    def network(weights, key, images):
        noise = jax.random.normal(key, (40, 3))
        return images.reshape(len(images), -1) @ (weights.astype(jnp.float32) + noise)

    weights = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.bfloat16)
    original = jax.tree_util.Partial(network, weights, jax.random.key(3))
    loaded = exported(original, path)
    assert [leaf.dtype for leaf in jax.tree.leaves(loaded)] == [jnp.bfloat16, jnp.uint32]
    assert_same(loaded, original, random_images(2, *SHAPE, dtype="float32"))


def test_arrays_that_a_function_closes_over_are_data(path):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.float32)
    loaded = exported(lambda images: images.reshape(len(images), -1) @ weights, path)
    (leaf,) = jax.tree.leaves(loaded)
    np.testing.assert_array_equal(leaf, weights)


def test_images_are_converted_to_the_type_of_the_file(tanh_file):
    loaded = hmt_jax.load_exported(tanh_file)
    images = random_images(2, *SHAPE, dtype="float16")
    np.testing.assert_array_equal(loaded(images), loaded(images.astype("float32")))
    assert jax.grad(lambda images: loaded(images).sum())(jnp.asarray(images)).dtype == jnp.float16


def test_loaded_classifiers_are_exported_again(tanh_file, path):
    loaded = hmt_jax.load_exported(tanh_file)
    assert_same(exported(loaded, path), loaded, random_images(3, *SHAPE, dtype="float32"))


def test_files_tell_nothing_of_the_machine_they_were_written_on(tanh_file):
    content = tanh_file.read_bytes()
    for path in (str(pathlib.Path(__file__).parent.parent), sys.prefix):
        assert os.fsencode(path) not in content
    with safetensors.safe_open(tanh_file, framework="numpy") as tensors:
        header = json.loads(tensors.metadata()["hmt_jax_exported"])
    assert header == {
        "format": 1,
        "jax": jax.__version__,
        "image_shape": list(SHAPE),
        "num_classes": 5,
        "dtype": "float32",
        "platforms": ["cpu", "cuda", "tpu"],
        "arrays": ["float32"] * 4,
    }


USERS_CODE = """
    import jax
    from flax import nnx

    class UsersNetwork(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.linear = nnx.Linear(4 * 6 * 6, 3, rngs=rngs)

        def __call__(self, images):
            x = jax.nn.gelu(self.norm(self.conv(images)))
            return self.linear(nnx.avg_pool(x, (2, 2), (1, 1)).reshape(x.shape[0], -1))
"""

OTHER_PROCESS = """
    import importlib.util, sys
    import numpy as np
    import hmt_jax

    folder = sys.argv[1]
    assert importlib.util.find_spec("users_code") is None
    classifier = hmt_jax.load_exported(f"{folder}/network.safetensors")
    images = np.load(f"{folder}/images.npy")
    result = hmt_jax.measure_margins(classifier, images, hmt_jax.subspaces.full((7, 7, 1)), hmt_jax.solvers.DeepFool())
    np.savez(f"{folder}/result.npz", margin=result.margin, status=result.status)
"""


@pytest.mark.slow
def test_a_users_module_is_measured_in_a_process_without_its_code(tmp_path, path):
    source = tmp_path / "code" / "users_code.py"
    source.parent.mkdir()
    source.write_text(textwrap.dedent(USERS_CODE))
    spec = importlib.util.spec_from_file_location("users_code", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.UsersNetwork(nnx.Rngs(0))
    network.eval()
    images = random_images(3, 7, 7, 1, dtype="float32")
    np.save(tmp_path / "images.npy", images)
    hmt_jax.save_exported(network, (7, 7, 1), path)
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", textwrap.dedent(OTHER_PROCESS), str(tmp_path)]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parent.parent, env=environment)
    expected = hmt_jax.measure_margins(network, images, subspaces.full((7, 7, 1)), solvers.DeepFool())
    assert expected.is_converged.all()
    with np.load(tmp_path / "result.npz") as found:
        np.testing.assert_array_equal(found["status"], expected.status)
        # Compiled with other optimisations, which round otherwise in every step.
        np.testing.assert_allclose(found["margin"], expected.margin, rtol=1e-4)


# What is refused


def test_other_images_are_refused(tanh_file):
    loaded = hmt_jax.load_exported(tanh_file)
    message = r"the classifier was exported for images of shape \(N, 5, 4, 2\), got \(1, 4, 4, 2\)"
    with pytest.raises(ValueError, match=message):
        loaded(jnp.ones((1, 4, 4, 2)))
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(loaded, jnp.ones((3, 4, 4, 2)) / 2, subspaces.full((4, 4, 2)), solvers.DeepFool())


def test_gradients_by_the_arrays_are_refused(tanh_file):
    loaded = hmt_jax.load_exported(tanh_file)
    with pytest.raises(ValueError, match=r"can be differentiated with respect to images only: train the net"):
        jax.grad(lambda classifier: classifier(jnp.ones((1, *SHAPE))).sum())(loaded)


def test_classifiers_that_cannot_be_exported_are_refused(path):
    with pytest.raises(ValueError, match=r"classifier can't be applied to images of shape \(N, 4, 4, 2\)"):
        hmt_jax.save_exported(tanh_classifier(dtype=jnp.float32), (4, 4, 2), path)
    with pytest.raises(ValueError, match=r"image_shape must be \(height, width, channels\), all at least 1, got \(5"):
        hmt_jax.save_exported(tanh_classifier(dtype=jnp.float32), (5, 4), path)

    def on_host(images):
        return jax.pure_callback(lambda images: images[:, 0, 0], jnp.zeros((1, 2)), images, vmap_method="sequential")

    with pytest.raises(ValueError, match=r"it can't be differentiated: compute with jax\.numpy"):
        hmt_jax.save_exported(on_host, SHAPE, path)
    with_derivative = jax.custom_vjp(on_host)
    with_derivative.defvjp(lambda images: (on_host(images), None), lambda _, gradient: (jnp.ones((1, *SHAPE)),))
    with pytest.raises(ValueError, match=r"the classifier can't be exported: .*, without callbacks to Python"):
        hmt_jax.save_exported(with_derivative, SHAPE, path)
    assert not path.exists()
    with pytest.raises(ValueError, match=r"there is no folder .*missing to write .* into: make it first"):
        hmt_jax.save_exported(tanh_classifier(dtype=jnp.float32), SHAPE, path.parent / "missing" / "file")


def test_damaged_files_are_refused(tanh_file, path):
    content, original = tanh_file.read_bytes(), hmt_jax.load_exported(tanh_file)
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"network\.safetensors"):
            hmt_jax.load_exported(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"network\.safetensors can't be read"):
        hmt_jax.load_exported(path)
    rng = np.random.default_rng(0)
    header_size = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8), *rng.integers(8, header_size, 40), *rng.integers(header_size, len(content), 10)]
    num_refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            loaded = hmt_jax.load_exported(path)
        except ValueError as error:
            assert "network.safetensors" in str(error)  # noqa: PT017 - some places do not matter, such as blanks
            num_refused += 1
        else:
            assert loaded.network == original.network
            jax.tree.map(np.testing.assert_array_equal, loaded.arrays, original.arrays)
    assert num_refused > len(places) - 5
    damaged = bytearray(content)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is damaged, its checksum does not match: copy or download it again"):
        hmt_jax.load_exported(path)


def rewritten(source, path, serialized=None, **changes):
    """The file with another header, or other functions, and the checksum of those."""
    with safetensors.safe_open(source, framework="numpy") as tensors:
        header = json.loads(tensors.metadata()["hmt_jax_exported"])
    content = load_file(source)
    arrays = [content[str(number)] for number in range(len(header["arrays"]))]
    functions = _exported.Functions(*(content[name].tobytes() for name in _exported.Functions._fields))
    functions = functions if serialized is None else serialized(functions)
    path.write_bytes(_exported_files._to_bytes({**header, **changes}, arrays, functions))


def test_files_of_later_versions_are_refused(tanh_file, path):
    rewritten(tanh_file, path)
    hmt_jax.load_exported(path)
    rewritten(tanh_file, path, format=2)
    with pytest.raises(ValueError, match=r"has version 2 of its format, and this hmt_jax reads version 1: install a l"):
        hmt_jax.load_exported(path)

    def of_later_stablehlo(functions):
        # The version of MLIR's bytecode, a byte after its magic number.
        before, after = functions.forward.split(b"ML\xefR")
        return functions._replace(forward=before + b"ML\xefR\xc7" + after[1:])

    rewritten(tanh_file, path, of_later_stablehlo, jax="9.0")
    with pytest.raises(ValueError, match=r"was written with JAX 9\.0, and JAX .* can't read it .*: install a version"):
        hmt_jax.load_exported(path)


def test_float64_is_not_rounded_unasked(path):
    with jax.enable_x64(True):
        hmt_jax.save_exported(tanh_classifier(), SHAPE, path)
    with pytest.raises(ValueError, match=r"is in float64, which JAX rounds to float32: call jax.config.update\('jax_e"):
        hmt_jax.load_exported(path)


def test_files_of_other_functions_are_refused_with_the_right_function(tanh_file, path, tmp_path):
    with pytest.raises(ValueError, match=r"was written by hmt_jax.save_exported: read it with hmt_jax.load_exported"):
        models.load(tanh_file)
    network = random_network("logistic", (2, 2, 1), mean=[0.0], std=[1.0])
    models.save(path, network, architecture={"name": "logistic", "image_shape": (2, 2, 1), "num_classes": 4})
    with pytest.raises(ValueError, match=r"was written by hmt_jax.models.save: read it with hmt_jax.models.load"):
        hmt_jax.load_exported(path)
    save_file({"weight": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"was not written by hmt_jax.save_exported: .*; read weights of PyTorch with"):
        hmt_jax.load_exported(path)
    np.savez(tmp_path / "weights.npz", weight=np.ones(3))
    with pytest.raises(ValueError, match=r"weights.npz is a zip archive, and was not written by hmt_jax.save_exported"):
        hmt_jax.load_exported(tmp_path / "weights.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hmt_jax.load_exported(tmp_path / "nowhere")
