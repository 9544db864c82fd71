"""Networks against NumPy and against the logits of the authors' LeNet."""

import importlib
import itertools
import os
import re
import sys
import tracemalloc
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx
from safetensors.numpy import load_file, save_file

import hmt_jax
from hmt_jax import models
from hmt_jax.models import _layers


def normal(rng, *shape):
    return rng.normal(size=shape) / 4


def numpy_conv(images, weight, bias, padding):
    """Cross-correlation of images (N, C, H, W) with weights (O, C, K, K), as PyTorch's convolutions."""
    images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(images, weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


def numpy_max_pool(images, size=2):
    """Images (N, C, H, W), one output at a time."""
    height, width = images.shape[2] // size, images.shape[3] // size
    pooled = np.zeros((*images.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            window = images[:, :, size * i : size * (i + 1), size * j : size * (j + 1)]
            pooled[:, :, i, j] = window.max(axis=(2, 3))
    return pooled


def relu(x):
    return np.maximum(x, 0)


def channels_first(images):
    return np.moveaxis(images, -1, 1)


def lenet_weights(rng, channels, num_flat, num_classes):
    return {
        "conv1.weight": normal(rng, 6, channels, 5, 5),
        "conv1.bias": normal(rng, 6),
        "conv2.weight": normal(rng, 16, 6, 5, 5),
        "conv2.bias": normal(rng, 16),
        "fc1.weight": normal(rng, 120, num_flat),
        "fc1.bias": normal(rng, 120),
        "fc2.weight": normal(rng, 84, 120),
        "fc2.bias": normal(rng, 84),
        "fc3.weight": normal(rng, num_classes, 84),
        "fc3.bias": normal(rng, num_classes),
    }


def numpy_lenet(weights, images):
    x = channels_first(images)
    x = numpy_max_pool(relu(numpy_conv(x, weights["conv1.weight"], weights["conv1.bias"], padding=2)))
    x = numpy_max_pool(relu(numpy_conv(x, weights["conv2.weight"], weights["conv2.bias"], padding=0)))
    x = x.reshape(len(x), -1)
    x = relu(x @ weights["fc1.weight"].T + weights["fc1.bias"])
    x = relu(x @ weights["fc2.weight"].T + weights["fc2.bias"])
    return x @ weights["fc3.weight"].T + weights["fc3.bias"]


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


# The networks of this file; those of others are tested there.
NAMES = ["lenet", "logistic", "mlp"]
MEAN, STD = np.array([0.4, 0.5, 0.3]), np.array([0.2, 0.3, 0.25])


def test_lenet_gives_the_logits_of_the_authors_lenet(reference, x64):
    weights = {name.removeprefix("weights/"): reference[name] for name in reference if name.startswith("weights/")}
    classifier = models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,))
    logits = jax.jit(classifier.__call__)(reference["images"][..., None] / 255)
    # Sums of some hundred numbers of the order of 10.
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-12)


# The second height leaves a row over in both poolings.
@pytest.mark.parametrize(("height", "width", "num_flat"), [(16, 20, 16 * 2 * 3), (19, 12, 16 * 2 * 1)])
def test_lenet_on_images_of_other_shapes_agrees_with_numpy(height, width, num_flat, x64):
    weights = lenet_weights(np.random.default_rng(0), 3, num_flat, num_classes=7)
    images = random_images(2, height, width, 3)
    classifier = models.from_torch("lenet", weights, image_shape=(height, width, 3), mean=MEAN, std=STD)
    logits = jax.jit(classifier.__call__)(images)
    assert logits.shape == (2, 7)
    np.testing.assert_allclose(logits, numpy_lenet(weights, (images - MEAN) / STD), rtol=0, atol=1e-12)


# To at most 2 x 2 pixels, where they are matrix products on CPU, and to more; with rows that no window reaches.
@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [((1, 1), 3, 1, 1), ((2, 2), 3, 1, 1), ((2, 1), 3, 1, 1), ((4, 3), 3, 2, 1), ((5, 7), 5, 3, 0), ((4, 4), 3, 1, 1)],
)
def test_convolutions_and_their_gradients_agree_with_numpy(shape, size, stride, padding, x64):
    rng = np.random.default_rng(3)
    images, change = normal(rng, 2, *shape, 3), normal(rng, 2, *shape, 3)
    kernel, bias, kernel_change = normal(rng, 4, 3, size, size), normal(rng, 4), normal(rng, 4, 3, size, size)

    def convolve(images, kernel, bias):
        layer = _layers.conv(3, 4, size, stride=stride, padding=padding, rngs=nnx.Rngs(0))
        layer.kernel, layer.bias = nnx.Param(kernel), nnx.Param(bias)
        return layer(images)

    def expected(images, kernel, bias):
        every = numpy_conv(channels_first(images), kernel, bias, padding)[:, :, ::stride, ::stride]
        return np.moveaxis(every, 1, -1)

    @jax.jit
    def result_and_gradients(images, kernel, bias, weights):
        result, pull_back = jax.vjp(convolve, images, kernel, bias)
        return result, *pull_back(weights)[:2]

    convolved = expected(images, kernel, bias)
    weights = normal(rng, *convolved.shape)
    result, images_gradient, kernel_gradient = result_and_gradients(
        images, np.transpose(kernel, (2, 3, 1, 0)), bias, weights
    )
    np.testing.assert_allclose(result, convolved, rtol=0, atol=1e-13)
    # A convolution is linear in the images and in the kernel: its gradients are the transposed maps.
    along_images = np.sum(weights * expected(change, kernel, np.zeros(4)))
    np.testing.assert_allclose(np.sum(images_gradient * change), along_images, rtol=1e-12)
    along_kernel = np.sum(weights * expected(images, kernel_change, np.zeros(4)))
    pulled = np.sum(kernel_gradient * np.transpose(kernel_change, (2, 3, 1, 0)))
    np.testing.assert_allclose(pulled, along_kernel, rtol=1e-12)


def test_mlp_agrees_with_numpy(x64):
    rng = np.random.default_rng(1)
    widths = [5 * 4 * 3, 8, 6, 9, 4]
    weights = {}
    for i, (num_in, num_out) in enumerate(itertools.pairwise(widths)):
        weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"] = normal(rng, num_out, num_in), normal(rng, num_out)
    images = random_images(3, 5, 4, 3)
    classifier = models.from_torch("mlp", weights, image_shape=(5, 4, 3), mean=MEAN, std=STD, num_hidden=(8, 6, 9))

    x = channels_first((images - MEAN) / STD).reshape(3, -1)
    for i in range(4):
        x = x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        x = relu(x) if i < 3 else x
    np.testing.assert_allclose(classifier(jnp.asarray(images)), x, rtol=0, atol=1e-12)


def test_logistic_agrees_with_numpy(x64):
    rng = np.random.default_rng(2)
    weights = {"linear.weight": normal(rng, 5, 60), "linear.bias": normal(rng, 5)}
    images = random_images(3, 5, 4, 3)
    classifier = models.from_torch("logistic", weights, image_shape=(5, 4, 3), mean=MEAN, std=STD)
    vectors = channels_first((images - MEAN) / STD).reshape(3, -1)
    expected = vectors @ weights["linear.weight"].T + weights["linear.bias"]
    np.testing.assert_allclose(classifier(jnp.asarray(images)), expected, rtol=0, atol=1e-12)


def test_the_precision_is_that_of_the_weights_and_images(x64):
    weights = {"linear.weight": np.eye(2, 60, dtype=np.float32), "linear.bias": np.zeros(2, np.float32)}
    classifier = models.from_torch("logistic", weights, image_shape=(5, 4, 3), mean=MEAN, std=STD)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(classifier, nnx.Param))} == {np.dtype("float32")}
    images = random_images(1, 5, 4, 3)
    assert classifier(jnp.asarray(images, jnp.float32)).dtype == np.float32
    assert classifier(jnp.asarray(images)).dtype == np.float64


@pytest.mark.parametrize(("height", "width", "size"), [(4, 6, 2), (5, 7, 2), (9, 7, 3), (2, 3, 2)])
def test_max_pool_takes_maxima_of_whole_windows(height, width, size, x64):
    images = random_images(2, height, width, 3) - 0.5
    expected = np.moveaxis(numpy_max_pool(channels_first(images), size), 1, -1)
    np.testing.assert_array_equal(jax.jit(_layers.max_pool, static_argnums=1)(images, size), expected)


@pytest.mark.parametrize(("height", "width", "size"), [(4, 6, 2), (5, 7, 2), (9, 7, 3)])
def test_the_gradient_of_max_pool_goes_to_the_first_maximum(height, width, size, x64):
    # Three values only, so that most windows tie, and one window all alike.
    images = np.random.default_rng(3).integers(3, size=(2, height, width, 3)).astype(float)
    images[0, :size, :size] = 1
    cotangent = random_images(2, height // size, width // size, 3)

    @jax.jit
    def gradient(images, cotangent):
        return jax.vjp(lambda images: _layers.max_pool(images, size), images)[1](cotangent)[0]

    expected = np.zeros_like(images)
    num_ties = 0
    for n, i, j, channel in np.ndindex(cotangent.shape):
        rows, columns = slice(size * i, size * (i + 1)), slice(size * j, size * (j + 1))
        window = images[n, rows, columns, channel]
        num_ties += np.sum(window == window.max()) > 1
        first = np.unravel_index(np.argmax(window), window.shape)
        expected[n, size * i + first[0], size * j + first[1], channel] = cotangent[n, i, j, channel]
    assert num_ties > cotangent.size / 2
    np.testing.assert_array_equal(gradient(images, cotangent), expected)


@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_max_pool_keeps_nan(position):
    images = np.ones((1, 4, 4, 1), np.float32)
    images[0, position[0], position[1], 0] = np.nan
    np.testing.assert_array_equal(jax.jit(_layers.max_pool)(images)[0, :, :, 0], [[np.nan, 1], [1, 1]])


def num_parameters(classifier):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(classifier, nnx.Param)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_shape", "options", "expected"),
    [
        ("lenet", (28, 28, 1), {}, 61_706),
        ("logistic", (28, 28, 1), {}, 7_850),
        ("mlp", (28, 28, 1), {}, 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10),
        ("mlp", (2, 3, 1), {"num_hidden": ()}, 70),
    ],
)
def test_the_number_of_parameters(name, image_shape, options, expected):
    classifier = models.create(name, jax.random.key(0), image_shape=image_shape, num_classes=10, **options)
    assert num_parameters(classifier) == expected
    # Everything that training should move, and nothing that it should not, is a parameter.
    assert len(jax.tree.leaves(nnx.state(classifier))) == len(jax.tree.leaves(nnx.state(classifier, nnx.Param))) + 2


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_follow_the_key(name):
    first, again, other = (
        nnx.to_flat_state(
            nnx.state(models.create(name, jax.random.key(seed), image_shape=(12, 12, 2), num_classes=3), nnx.Param)
        )
        for seed in (0, 0, 1)
    )
    for (path, one), (_, same), (_, different) in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one[...], same[...], err_msg=str(path))
        assert not np.isclose(one[...], different[...]).all(), path


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_initialised_as_pytorch_does(name):
    classifier = models.create(name, jax.random.key(0), image_shape=(12, 12, 2), num_classes=10)
    parameters = dict(nnx.to_flat_state(nnx.state(classifier, nnx.Param)))
    for path, kernel in parameters.items():
        if path[-1] != "kernel":
            continue
        fan_in = np.prod(kernel.shape[:-1])
        bias = parameters[(*path[:-1], "bias")]
        for values in (np.ravel(kernel[...]), np.ravel(bias[...])):
            scaled = values * np.sqrt(fan_in)
            assert np.abs(scaled).max() <= 1 + 1e-6, path
            assert np.abs(scaled).max() > 0.5, path
        # Uniform in [-1, 1] once scaled: the mean of n numbers is within 5 deviations, 0.58 each over sqrt(n), of 0,
        # the mean square, with deviations of 0.30, of 1 / 3.
        scaled = np.ravel(kernel[...]) * np.sqrt(fan_in)
        assert abs(np.mean(scaled)) < 5 * 0.58 / np.sqrt(scaled.size), path
        assert abs(np.mean(scaled**2) - 1 / 3) < 5 * 0.30 / np.sqrt(scaled.size), path


def test_layers_have_weights_of_their_own():
    classifier = models.create("mlp", jax.random.key(0), image_shape=(4, 5, 5), num_classes=100)
    first, second, third = (layer.kernel[...] for layer in classifier.network.layers)
    assert first.shape == second.shape == third.shape
    assert not np.isclose(first, second).all()
    assert not np.isclose(second, third).all()


class Identity(nnx.Module):
    def __call__(self, images):
        return images


def test_normalisation_subtracts_and_divides():
    images = random_images(2, 4, 5, 3).astype(np.float32)
    for mean in (MEAN, random_images(4, 5, 3, seed=1), np.array([0.5])):
        for std in (STD, np.array([0.5])):
            normalized = models.Normalized(Identity(), jnp.asarray(mean), jnp.asarray(std))(jnp.asarray(images))
            np.testing.assert_allclose(normalized, (images - mean) / std, rtol=1e-5, atol=1e-5)


def test_a_mean_image_normalises_each_pixel(x64):
    mean = random_images(5, 4, 3, seed=1)
    weights = {"linear.weight": normal(np.random.default_rng(2), 5, 60), "linear.bias": np.zeros(5)}
    classifier = models.from_torch("logistic", weights, image_shape=(5, 4, 3), mean=mean, std=STD)
    # The mean image itself has no logits but the biases.
    np.testing.assert_array_equal(classifier(jnp.asarray(mean[None])), np.zeros((1, 5)))


def test_statistics_are_no_parameters_and_have_no_gradient_of_their_own():
    classifier = models.create(
        "logistic", jax.random.key(0), image_shape=(2, 2, 3), num_classes=2, mean=tuple(MEAN), std=tuple(STD)
    )
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(nnx.state(classifier, nnx.Param)))
    assert shapes == [(2,), (12, 2)]
    np.testing.assert_allclose(classifier.mean[...], MEAN, rtol=1e-6)


@pytest.mark.parametrize("build", ["create", "from_torch"])
def test_unknown_names_list_the_known_ones(build):
    builders = {
        "create": lambda: models.create("lennet", jax.random.key(0), image_shape=(8, 8, 1), num_classes=2),
        "from_torch": lambda: models.from_torch("lennet", {}, image_shape=(8, 8, 1), mean=(0,), std=(1,)),
    }
    with pytest.raises(
        ValueError, match=r"^unknown model 'lennet'; the known ones are (\w+, )*lenet, logistic, mlp(, |$)"
    ):
        builders[build]()


def test_names_are_sorted():
    assert set(NAMES) <= set(models.names())
    assert list(models.names()) == sorted(models.names())


def test_a_state_dict_that_does_not_fit_is_told_everything_at_once():
    weights = lenet_weights(np.random.default_rng(0), 1, 400, num_classes=10)
    del weights["conv1.bias"], weights["fc2.weight"]
    weights["bn1.weight"] = np.ones(6)
    weights["conv2.weight"] = np.moveaxis(weights["conv2.weight"], 0, -1)
    weights["fc1.weight"] = weights["fc1.weight"].T
    with pytest.raises(
        ValueError,
        match=r"^the state dict does not fit lenet:\n"
        r"  lenet                       the state dict\n"
        r"  conv2\.weight \(16, 6, 5, 5\)  conv2\.weight \(6, 5, 5, 16\)\n"
        r"  fc1\.weight \(120, 400\)       fc1\.weight \(400, 120\)\n"
        r"  conv1\.bias \(6,\)             -\n"
        r"  fc2\.weight \(84, 120\)        -\n"
        r"  -                           bn1\.weight \(6,\)$",
    ):
        models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))


@pytest.mark.parametrize("state_dict", [{}, {"epoch": 3, "name": "logistic"}, {"state_dict": {}}])
def test_state_dicts_without_arrays_are_named(state_dict):
    with pytest.raises(
        ValueError, match=r"^the state dict holds no arrays by name: pass the weights of the network, as"
    ):
        small_from_torch(state_dict)


def test_numbers_and_words_beside_the_weights_are_left_out():
    beside = {"epoch": 3, "accuracy": 0.5, "name": "it", "best": None, "done": True, "optimizers": [{"lr": 0.1}]}
    check_small(small_from_torch(SMALL | beside))


def test_a_head_that_is_elsewhere_is_beside_the_missing_one():
    weights = {"backbone.layers.0.weight": np.ones((3, 4)), "backbone.layers.0.bias": np.ones(3)}
    weights |= {"head.layers.1.weight": np.ones((5, 3)), "head.layers.1.bias": np.ones(5)}
    message = (
        r"^the state dict does not fit mlp:\n  mlp +the state dict\n"
        r"  backbone\.layers\.1\.bias \(5,\) +head\.layers\.1\.bias \(5,\)\n"
        r"  backbone\.layers\.1\.weight \(5, 3\) +head\.layers\.1\.weight \(5, 3\)$"
    )
    with pytest.raises(ValueError, match=message):
        small_from_torch(weights, "mlp", num_hidden=(3,))
    del weights["head.layers.1.weight"]
    with pytest.raises(ValueError, match=r"\n  backbone\.layers\.1\.bias \(\?,\) +-\n.*weight \(\?, 3\) +-\n  - +head"):
        small_from_torch(weights, "mlp", num_hidden=(3,))


def test_missing_arrays_are_beside_the_unexpected_ones_that_they_may_be():
    weights = lenet_weights(np.random.default_rng(0), 1, 400, num_classes=10)
    # The last two have the shapes of each other's counterparts in other layers, and are told apart by their names.
    for name in ("fc1.weight", "fc1.bias", "conv1.bias"):
        weights["my_" + name] = weights.pop(name)
    weights["threshold"] = np.ones(120)
    with pytest.raises(
        ValueError,
        match=r"^the state dict does not fit lenet:\n"
        r"  lenet +the state dict\n"
        r"  conv1\.bias \(6,\) +my_conv1\.bias \(6,\)\n"
        r"  fc1\.bias \(120,\) +my_fc1\.bias \(120,\)\n"
        r"  fc1\.weight \(120, 400\) +my_fc1\.weight \(120, 400\)\n"
        r"  - +threshold \(120,\)$",
    ):
        models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))


def test_of_many_faults_of_a_state_dict_the_first_are_told():
    message = (
        r"does not fit resnet18:\n  resnet18 +the state dict\n(  \S+ \([\d, ]+\) +-\n){4}(  - +x\d \(\)\n){4}"
        r"  and 98 more missing, 3 more unexpected$"
    )
    with pytest.raises(ValueError, match=message):
        models.from_torch(
            "resnet18", {f"x{i}": np.zeros(()) for i in range(7)}, image_shape=(64, 64, 3), mean=(0.5,), std=(0.5,)
        )


def test_the_number_of_classes_is_checked_if_given():
    weights = {"linear.weight": np.zeros((5, 4)), "linear.bias": np.zeros(5)}
    with pytest.raises(
        ValueError,
        match=r"^the state dict does not fit logistic with num_classes=3: its weights have num_classes=5; leave "
        r"num_classes out to take that$",
    ):
        small_from_torch(weights, num_classes=3)
    with pytest.raises(ValueError, match=r"^num_classes must be at least 1, got 0$"):
        small_from_torch(weights, num_classes=0)


@pytest.mark.parametrize(
    ("image_shape", "fitting", "shape"),
    [
        ((28, 28, 3), (28, 28, 1), (28, 28, 1)),
        ((32, 32, 1), (28, 28, 1), (28, 28, 1)),
        ((28, 28, 1), (30, 31, 3), (28, 28, 3)),  # the least of those that fit
        ((28, 28, 1), (16, 20, 1), None),  # of no square
    ],
)
def test_the_image_shape_that_weights_fit_is_named(image_shape, fitting, shape):
    pooled = [(length // 2 - 4) // 2 for length in fitting[:2]]
    weights = lenet_weights(np.random.default_rng(0), fitting[2], 16 * pooled[0] * pooled[1], num_classes=10)
    classifier = small_from_torch(weights, "lenet", image_shape=fitting)
    start = rf"^the state dict does not fit lenet with image_shape={re.escape(str(image_shape))}: it fits image_shape="
    message = "^the state dict does not fit lenet:\n  lenet" if shape is None else start + re.escape(f"{shape}\n  len")
    with pytest.raises(ValueError, match=message):
        small_from_torch(weights, "lenet", image_shape=image_shape)
    if shape:
        check_small(small_from_torch(weights, "lenet", image_shape=shape), models.to_torch(classifier))


@pytest.mark.parametrize("image_shape", [(8, 8), (8, 8, 0), (1, 8, 8, 1)])
def test_image_shapes_are_checked(image_shape):
    message = r"image_shape must be \(height, width, channels\), all at least 1, got \("
    with pytest.raises(ValueError, match=message):
        models.create("mlp", jax.random.key(0), image_shape=image_shape, num_classes=2)
    with pytest.raises(ValueError, match=message):
        models.from_torch("mlp", {}, image_shape=image_shape, mean=(0,), std=(1,))


def test_an_image_shape_may_be_a_list():
    weights = {"linear.weight": np.eye(2, 4, dtype=np.float32), "linear.bias": np.zeros(2, np.float32)}
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    classifier = models.from_torch("logistic", weights, image_shape=[2, 2, 1], mean=(0,), std=(2,))
    np.testing.assert_array_equal(classifier(jnp.asarray(image)), [[0, 0.5]])
    assert num_parameters(models.create("logistic", jax.random.key(0), image_shape=[2, 2, 1], num_classes=2)) == 10


def test_lenet_needs_images_of_some_size():
    with pytest.raises(ValueError, match="lenet needs images of at least 12 x 12, got 11 x 28"):
        models.create("lenet", jax.random.key(0), image_shape=(11, 28, 1), num_classes=10)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (
            (0.1, 0.2),
            (1.0,),
            r"mean must have one number for each of 3 channels, or be an image of shape \(4, 5, 3\), got shape \(2,\)",
        ),
        ((0.0,), np.ones((5, 4, 3)), r"std must have one number for each of 3 channels, .*, got shape \(5, 4, 3\)"),
        (0.5, 0.0, r"std must be positive and finite, got 0\.0$"),
        ((0.0,), (1.0, 0.0, 1.0), r"std must be positive and finite, got 0\.0$"),
        ((0.0,), (-1.0,), r"std must be positive and finite, got -1\.0$"),
        ((0.0,), (np.nan,), r"std must be positive and finite, got nan$"),
        ((0.0,), (1.0, np.inf, 1.0), r"std must be positive and finite, got inf$"),
        ((np.nan,), (1.0,), r"mean must be finite, got nan$"),
        (np.full((4, 5, 3), -np.inf), (1.0,), r"mean must be finite, got -inf$"),
        ((1j,), (1.0,), r"mean must be real numbers, got complex128$"),
        ((0.0,), (True,), r"std must be real numbers, got bool$"),
    ],
)
def test_statistics_are_checked(mean, std, message):
    with pytest.raises(ValueError, match=message):
        models.create("logistic", jax.random.key(0), image_shape=(4, 5, 3), num_classes=2, mean=mean, std=std)
    with pytest.raises(ValueError, match=message):
        models.from_torch("logistic", {}, image_shape=(4, 5, 3), mean=mean, std=std)


def test_one_number_normalises_every_channel():
    images = np.random.default_rng(0).random((2, 4, 5, 3), np.float32)
    weights = {"linear.weight": np.random.default_rng(1).random((2, 60), np.float32), "linear.bias": np.zeros(2, "f4")}
    one = models.from_torch("logistic", weights, image_shape=(4, 5, 3), mean=0.5, std=0.25)
    each = models.from_torch("logistic", weights, image_shape=(4, 5, 3), mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_array_equal(one(images), each(images))


SMALL = {"linear.weight": np.arange(8.0).reshape(2, 4) / 8, "linear.bias": np.array([0.25, -0.5])}


def small_from_torch(state_dict, name="logistic", **options):
    return models.from_torch(name, state_dict, **({"image_shape": (2, 2, 1), "mean": (0,), "std": (1,)} | options))


def behind(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def check_small(classifier, expected=SMALL):
    found = models.to_torch(classifier)
    assert set(found) == set(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


AVERAGED = {name: array + 1 for name, array in SMALL.items()}


@pytest.mark.parametrize(
    ("key", "averaged_key"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model_state_dict", "ema"),
        ("net", "swa"),
        ("semantic", "shadow"),
    ],
)
@pytest.mark.parametrize("is_averaged_first", [False, True])
def test_averages_are_taken_with_a_warning_that_names_the_others(key, averaged_key, is_averaged_first):
    pairs = [(key, SMALL), (averaged_key, behind("module.", AVERAGED))]
    checkpoint = {"epoch": 3, **dict(pairs[::-1] if is_averaged_first else pairs)}
    message = (
        "^the state dict holds averages of the weights beside the weights themselves: the averages are taken; pass "
        f"weights='{averaged_key}' to confirm this, or weights='{key}' to take the others$"
    )
    with pytest.warns(UserWarning, match=message):
        check_small(small_from_torch(checkpoint), AVERAGED)
    check_small(small_from_torch(checkpoint, weights=key))
    check_small(small_from_torch(checkpoint, weights=averaged_key), AVERAGED)
    # Equal ones leave nothing to choose, and one is no choice.
    check_small(small_from_torch({key: SMALL, averaged_key: behind("module.", SMALL)}))
    check_small(small_from_torch({"epoch": 3, averaged_key: {"weights": SMALL}, "optimizer": {"state": {0: {}}}}))


@pytest.mark.parametrize(
    ("copy", "weights"),
    [
        ({"others": [0.99, [{"weights": AVERAGED}]]}, "others"),
        ({"teacher": behind("net.", AVERAGED)}, "teacher"),
        # Averages of the parameters alone, without what batch norm counts: the network is not whole with them.
        ({"ema": {"shadow": {"linear.bias": AVERAGED["linear.bias"]}}}, "ema"),
    ],
)
def test_other_copies_that_differ_are_not_chosen_among(copy, weights):
    message = (
        rf"^the state dict holds the weights more than once, and their linear\.\w+ differ: pass weights='model' or "
        rf"weights='{weights}'$"
    )
    with pytest.raises(ValueError, match=message):
        small_from_torch({"model": SMALL, **copy})
    check_small(small_from_torch({"model": SMALL, **copy}, weights="model"))


@pytest.mark.parametrize("seed", range(20))
def test_every_place_that_a_refusal_names_holds_one_of_the_copies(seed):
    rng = np.random.default_rng(seed)
    words = ["module", "_orig_mod", "model", "net", "ema", "linear", "0", "1"]
    copies: dict[tuple, dict] = {}
    while len(copies) < 3:
        keys = tuple(rng.choice(words, size=rng.integers(0, 4)).tolist())
        unwrapped = tuple(key for key in keys if key not in {"module", "_orig_mod"})
        copies.setdefault(
            unwrapped, {"keys": keys, "number": len(copies), "num_nested": rng.integers(0, len(keys) + 1)}
        )
    checkpoint: dict = {"optimizer": [{"lr": 0.1}]}
    for copy in copies.values():
        place = checkpoint
        for key in copy["keys"][: copy["num_nested"]]:
            place = place.setdefault(key, {})
        place |= behind("".join(f"{key}." for key in copy["keys"][copy["num_nested"] :]), small_plus(copy["number"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, UserWarning), match="weights=") as refusal:
            small_from_torch(checkpoint)
    places = re.findall(r"weights='(.*?)'", str(refusal.value))
    biases = [models.to_torch(small_from_torch(checkpoint, weights=place))["linear.bias"][0] for place in places]
    assert sorted(biases) == [small_plus(number)["linear.bias"][0] for number in range(3)]


def small_plus(number):
    return {name: array + number for name, array in SMALL.items()}


def test_two_averages_are_not_chosen_among():
    checkpoint = {"model": SMALL, "ema": {"0.99": AVERAGED, "fast": {name: 2 * a for name, a in AVERAGED.items()}}}
    with pytest.raises(
        ValueError, match=r"differ: pass weights='ema\.0\.99' or weights='ema\.fast' or weights='model'$"
    ):
        small_from_torch(checkpoint)
    with pytest.raises(ValueError, match=r"differ: pass weights='ema\.0\.99' or weights='ema\.fast'$"):
        small_from_torch(checkpoint, weights="ema")
    check_small(small_from_torch(checkpoint, weights="ema.0.99"), AVERAGED)


@pytest.mark.parametrize("average", [(AVERAGED, 0.99), [AVERAGED], [0.9, {"weights": AVERAGED}]])
def test_averages_in_lists_are_taken_with_a_warning(average):
    with pytest.warns(
        UserWarning, match=r"pass weights='emas' to confirm this, or weights='model' to take the others$"
    ):
        check_small(small_from_torch({"model": SMALL, "emas": average}), AVERAGED)
    check_small(small_from_torch({"model": SMALL, "emas": average}, weights="model"))


def test_weights_beside_copies_of_themselves_in_one_mapping():
    message = r"pass weights='ema' to confirm this, or weights='' to take the others$"
    with pytest.warns(UserWarning, match=message):
        check_small(small_from_torch(SMALL | behind("ema.", AVERAGED)), AVERAGED)
    check_small(small_from_torch(SMALL | behind("ema.", AVERAGED), weights=""))
    nested = {"model": {**SMALL, "ema": AVERAGED}}
    with pytest.warns(
        UserWarning, match=r"pass weights='model\.ema' to confirm this, or weights='model' to take the others$"
    ):
        check_small(small_from_torch(nested), AVERAGED)
    check_small(small_from_torch(nested, weights="model"))


def test_places_without_weights_are_refused():
    checkpoint = {"model": SMALL, "ema": AVERAGED, "epoch": 3}
    message = r"^weights is 'state_dict', and the state dict holds no array of the network there: pass weights="
    with pytest.raises(ValueError, match=message + "'ema' or weights='model'$"):
        small_from_torch(checkpoint, weights="state_dict")
    with pytest.raises(ValueError, match=message + r"'net'$"):
        small_from_torch(behind("net.", SMALL), weights="state_dict")
    with pytest.raises(ValueError, match=r"there: it holds none elsewhere, either$"):
        small_from_torch({"a": np.zeros(2)}, weights="model")
    with pytest.raises(TypeError, match=r"^weights must be the place of .*, got dict: pass the weights themselves as"):
        small_from_torch(checkpoint, weights=SMALL)


def test_what_is_beside_the_network_is_left_out_only_by_choice():
    checkpoint = behind("model.net.", SMALL) | {"criterion.weight": np.ones(2)}
    message = (
        r"^the state dict holds more than logistic: pass weights='model\.net' to take only what is there, if the rest "
        r"is not part of the network\n  logistic  the state dict\n  -         criterion\.weight \(2,\)$"
    )
    with pytest.raises(ValueError, match=message):
        small_from_torch(checkpoint)
    check_small(small_from_torch(checkpoint, weights="model.net"))
    check_small(small_from_torch(checkpoint, weights="model"))
    # An entry of the network's own is never left out.
    for weights in (None, "model", "model.net"):
        with pytest.raises(ValueError, match=r"fit logistic:\n .*\n  - +model\.net\.linear\.scale \(2,\)$"):
            small_from_torch(behind("model.net.", {**SMALL, "linear.scale": np.ones(2)}), weights=weights)


@pytest.mark.parametrize("seed", range(30))
def test_any_nesting_and_any_prefixes_give_the_classifier_of_the_plain_weights(seed):
    rng = np.random.default_rng(seed)

    def word():
        return "".join(rng.choice(list("abdfghkmno_"), size=rng.integers(1, 8)))

    def shuffled(mapping):
        return {key: mapping[key] for key in rng.permutation(list(mapping))}

    plain = lenet_weights(rng, 1, 16, num_classes=3)
    prefix = "".join(f"{word()}." for _ in range(rng.integers(0, 4)))
    wrapped = {}
    for name, array in plain.items():
        layer, variable = name.split(".")
        wrapper = rng.choice(["", "module.", "_orig_mod.", "_fsdp_wrapped_module."])
        wrapped[f"{prefix}{layer}.{wrapper}{variable}"] = array
    counters = {f"{prefix}n_averaged": np.array(2)} if rng.random() < 0.5 else {}
    checkpoint = shuffled(wrapped | counters)
    for _ in range(rng.integers(0, 4)):
        beside = {"_epoch": 3, "_optimizer": {"state": {0: {"step": np.ones(3)}}, "param_groups": [{"lr": 0.1}]}}
        inner = [checkpoint, {}, 0.5][: rng.integers(1, 4)] if rng.random() < 0.3 else checkpoint
        checkpoint = shuffled({word(): inner, **beside})
    found = small_from_torch(checkpoint, "lenet", image_shape=(12, 12, 1))
    check_small(found, models.to_torch(small_from_torch(plain, "lenet", image_shape=(12, 12, 1))))


def test_weights_in_lists_are_found():
    check_small(small_from_torch({"models": [SMALL], "losses": [0.5, 0.25], "ema": [0.9, 0.99]}))
    check_small(small_from_torch({"epochs": (3, {"ema": [SMALL]}), "optimizer": [{"params": [0, 1]}]}))


ROW = list(AVERAGED.values())


@pytest.mark.parametrize(
    ("beside", "place"),
    [
        ({"ema": {"decay": 0.9, "shadow_params": ROW}}, r"ema\.shadow_params"),
        ({"optimizer_states": [{"ema": tuple(ROW)}]}, r"optimizer_states\.0\.ema"),
        ({"Averages": [ROW[:1], ROW[1:]]}, "Averages"),
        ({"shadow": dict(enumerate(ROW))}, "shadow"),
    ],
)
def test_averaged_weights_without_names_are_not_passed_over_in_silence(beside, place):
    checkpoint = {"model": behind("net.", SMALL), **beside}
    message = (
        rf"^'{place}' holds arrays without names, which seem to be averages of the weights: to take them, put them "
        r"into the model and save its state_dict\(\); to take the others, pass weights='model\.net'$"
    )
    with pytest.raises(ValueError, match=message):
        small_from_torch(checkpoint)
    check_small(small_from_torch(checkpoint, weights="model.net"))
    check_small(small_from_torch(checkpoint, weights="model"))


def test_averages_in_the_same_mapping_of_a_file_are_taken_with_a_warning(tmp_path):
    np.savez(tmp_path / "it.npz", **behind("raw.", SMALL), **behind("ema_model.module.", AVERAGED))
    with pytest.warns(
        UserWarning, match=r"pass weights='ema_model' to confirm this, or weights='raw' to take the others$"
    ):
        check_small(small_from_torch(tmp_path / "it.npz"), AVERAGED)
    check_small(small_from_torch(tmp_path / "it.npz", weights="raw"))


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "model.",
        "net.",
        "backbone.",
        "module._orig_mod.model.",
        "module.attacker.model.",
        "a.b_c.0.",
    ],
)
def test_prefixes_are_seen_in_the_names(prefix):
    counters = {"n_averaged": np.array(3), "module.num_batches_tracked": np.array(4)}
    check_small(small_from_torch(behind(prefix, SMALL) | counters))
    check_small(small_from_torch({"state_dict": behind(prefix, SMALL)}))


@pytest.mark.parametrize("is_wrapped_first", [False, True])
def test_a_name_that_stands_twice_behind_wrappers_is_refused(is_wrapped_first):
    both = [SMALL, behind("module.", AVERAGED)][:: -1 if is_wrapped_first else 1]
    names = r"module\.linear\.bias and linear\.bias" if is_wrapped_first else r"linear\.bias and module\.linear\.bias"
    with pytest.raises(ValueError, match=rf"holds {names}, which are two names of one array, but their numbers differ"):
        small_from_torch(both[0] | both[1])
    check_small(small_from_torch(SMALL | behind("module.", SMALL)))


def test_a_name_that_stands_twice_in_an_archive_is_refused(tmp_path):
    np.savez(tmp_path / "it.npz", **SMALL)
    with zipfile.ZipFile(tmp_path / "it.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("linear.bias.npy", archive.read("linear.bias.npy"))
    with pytest.raises(ValueError, match=r"it\.npz holds linear\.bias\.npy twice: write each array once$"):
        small_from_torch(tmp_path / "it.npz")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64", "object"])
def test_weights_must_be_floating_point(dtype):
    message = rf"^linear\.weight holds {dtype}, and weights must be float16, bfloat16, float32 or float64: "
    with pytest.raises(ValueError, match=message):
        small_from_torch({**SMALL, "linear.weight": SMALL["linear.weight"].astype(dtype)})


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", "bfloat16"])
def test_weights_of_any_byte_order_and_precision_keep_their_numbers(dtype):
    dtype = jnp.bfloat16 if dtype == "bfloat16" else dtype
    check_small(small_from_torch({name: array.astype(dtype) for name, array in SMALL.items()}))


def test_a_normalisation_among_the_weights_must_be_the_one_that_is_given():
    own = {"0.mean": np.full((1, 1, 1), 0.25), "0.std": np.full((1, 1, 1), 0.5)}
    weights = behind("1.", SMALL) | own
    check_small(small_from_torch(weights, mean=(0.25,), std=(0.5,)))
    check_small(small_from_torch(weights, mean=np.full((2, 2, 1), 0.25), std=(0.5,)))
    for statistics, message in [
        ({"mean": (0.5,)}, r"^0\.mean of the state dict is \(0\.25,\), but mean is \(0\.5,\): pass the normalisation"),
        (
            {"std": (1.0,)},
            r"^0\.std of the state dict is \(0\.5,\), but std is \(1\.0,\): .* std=\(0\.5,\), or leave that",
        ),
        (
            {"mean": np.eye(2)[..., None]},
            r"but mean is an image with a mean of 0\.5: pass .*, mean=\(0\.25,\), or leave",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            small_from_torch(weights, **({"mean": (0.25,), "std": (0.5,)} | statistics))


def test_a_normalisation_among_the_weights_is_taken_if_none_is_given():
    def statistics_of(state_dict, **given):
        classifier = models.from_torch("logistic", state_dict, image_shape=(2, 2, 1), **given)
        return classifier.mean[...].tolist(), classifier.std[...].tolist()

    own = {"normalize.mean": np.full((1, 1, 1, 1), 0.25), "normalize.std": np.full((1, 1, 1, 1), 0.5)}
    for weights in (behind("model.", SMALL) | own, {"state_dict": behind("module.", own | behind("model.", SMALL))}):
        assert statistics_of(weights) == ([0.25], [0.5])
        assert statistics_of(weights, mean=(0.25,)) == ([0.25], [0.5])
    assert statistics_of(SMALL | {"pixel_mean": np.array([0.25]), "sigma": np.array([0.5])}) == ([0.25], [0.5])
    # As if it were not there, where the place of the weights is given, it is part of the network all the same.
    assert statistics_of(behind("model.", SMALL) | own, weights="model") == ([0.25], [0.5])
    for changes, message in [
        (
            {"normalize.mean": None},
            r"^mean is not given, and the state dict holds none: pass the one that the .* mean=\(0,\)",
        ),
        (
            {"normalize.std": None},
            r"^std is not given, and the state dict holds none: pass the one that the .* std=\(1,\)",
        ),
        ({"other.mean": np.array([0.5])}, r"^normalize\.mean and other\.mean of the state dict differ: pass mean$"),
        (
            {"normalize.mean": np.full(3, 0.5)},
            r"^normalize\.mean of the state dict has 3 numbers, and the images have 1 channels: pass mean$",
        ),
        (
            {"normalize.mean": np.full(1, 127.5)},
            r"^normalize\.mean of the state dict is \(127\.5,\), which is not of pixels in \[0, 1\]: pass mean, "
            r"mean=\(0\.5,\) if its pixels are from 0 to 255$",
        ),
    ]:
        weights = {k: v for k, v in (behind("model.", SMALL) | own | changes).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            statistics_of(weights)
    # With what that message says.
    assert statistics_of(weights, mean=(0.5,)) == ([0.5], [0.5])


def mlp_weights(*widths):
    weights = {}
    for i, (num_in, num_out) in enumerate(itertools.pairwise(widths)):
        weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"] = np.ones((num_out, num_in)), np.ones(num_out)
    return weights


def test_hidden_widths_are_those_of_the_weights():
    weights = behind("net.", mlp_weights(4, 3, 7, 5))
    classifier = small_from_torch(weights, "mlp")
    assert [layer.kernel.shape for layer in classifier.network.layers] == [(4, 3), (3, 7), (7, 5)]
    message = (
        r"^the state dict does not fit mlp with num_hidden=\(2, 7\): its weights have num_hidden=\(3, 7\); leave num_h"
    )
    with pytest.raises(ValueError, match=message):
        small_from_torch(weights, "mlp", num_hidden=(2, 7))
    message = (
        r"^the state dict does not fit mlp with num_classes=2, num_hidden=\(7,\): its weights have num_classes=5, "
        r"num_hidden=\(3, 7\); leave num_classes and num_hidden out to take that$"
    )
    with pytest.raises(ValueError, match=message):
        small_from_torch(weights, "mlp", num_hidden=[7], num_classes=2)
    # Of two networks, the widths are those of the chosen one.
    both = {"student": weights, "teacher": mlp_weights(4, 9, 8, 6, 5)}
    assert len(small_from_torch(both, "mlp", weights="student").network.layers) == 3
    assert len(small_from_torch(both, "mlp", weights="teacher").network.layers) == 4


@pytest.mark.parametrize("given", ["lenet", "mlp"])
def test_weights_of_another_architecture_say_which_it_is(given):
    with pytest.raises(
        ValueError, match=rf"^the state dict does not fit {given}; it fits logistic: pass that name\n  "
    ):
        small_from_torch(
            {"linear.weight": np.ones((2, 144)), "linear.bias": np.ones(2)}, given, image_shape=(12, 12, 1)
        )


@pytest.mark.parametrize(
    ("key", "owner", "remedy"),
    [
        ("linear.weight_g", "weight norm", r"call torch\.nn\.utils\.remove_weight_norm\(layer\) on every"),
        (
            "linear.parametrizations.weight.original1",
            "a parametrization",
            r"call .*\.remove_parametrizations\(layer, 'w",
        ),
        ("linear.weight_u", "spectral norm", r"call torch\.nn\.utils\.remove_spectral_norm\(layer\) on every"),
        ("linear.weight_mask", "pruning", r"call torch\.nn\.utils\.prune\.remove\(layer, 'weight'\) on every"),
        ("linear.lora_A.default.weight", "a LoRA adapter", r"save the network of merge_and_unload\(\)$"),
        ("linear.weight_scale_inv", "quantized weights", "save the state dict of the network before it was quantized$"),
        ("_fsdp_wrapped_module._flat_param", "FSDP's flattened weights", "save the full state dict, with torch"),
        ("linear.qweight", "quantized weights", "save the state dict of the network before it was quantized$"),
    ],
)
def test_parts_from_which_weights_are_computed_are_named(key, owner, remedy):
    message = rf"^net\.{re.escape(key)} belongs to {owner}, and weights must be single arrays: {remedy}"
    with pytest.raises(ValueError, match=message):
        small_from_torch(behind("net.", {"linear.bias": SMALL["linear.bias"], key: np.ones((2, 4))}))


NO_WEIGHTS = {
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a Git LFS pointer"),
    "page.safetensors": (b"\n<!DOCTYPE html><html><head></head></html>", "a web page"),
    "marked.pth": (b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"),
    "empty.npz": (b"", "empty"),
    "weights.pth.gz": (b"\x1f\x8b\x08\x00", "compressed"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n", "a file of HDF5 or Keras"),
    "saved_model.pb": (b"\x08\x01\x12\x8a", "a SavedModel of TensorFlow's"),
    "variables.data-00000-of-00001": (b"\x00\x00\x80?", "a checkpoint of TensorFlow's"),
    "variables.index": (b"\x00\x00\x0bW\xfb\x80\x8b$u\x47\xdb", "a checkpoint of TensorFlow's"),
    "model.tflite": (b"\x1c\x00\x00\x00TFL3", "a file of TensorFlow Lite"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch", "a file of ONNX"),
    "model.gguf": (b"GGUF\x03\x00", "a file of GGUF"),
    "flax_model.msgpack": (b"\x82\xa5conv1", "a file of Flax's msgpack"),
    "array.npy": (b"\x93NUMPY\x01\x00", "a single array of NumPy's"),
    "config.json": (b'{"metadata": {}}', "text in JSON"),
    "model.safetensors.index.json": (b'{"metadata": {}, "weight_map": {}}', "the index of weights in several files"),
    "marked.json": (b"\xef\xbb\xbf{}", "text in JSON"),
    "notes.bin": (b"hello, world", "of no known kind"),
}
REMEDIES = {
    "pointer.pth": "fetch the file itself with `git lfs pull`$",
    "page.safetensors": "the download failed, so download it again$",
    "marked.pth": "the download failed, so download it again$",
    "empty.npz": "the download or the copy failed, so repeat it$",
    "weights.pth.gz": "unpack it first$",
    **dict.fromkeys(
        (
            "keras.h5",
            "saved_model.pb",
            "variables.data-00000-of-00001",
            "variables.index",
            "model.tflite",
            "model.onnx",
            "model.gguf",
            "flax_model.msgpack",
        ),
        r"save its arrays, by PyTorch's names and in its layout, with np\.savez$",
    ),
    "array.npy": r"save all arrays by name with np\.savez$",
    "config.json": "pass the file of the tensors themselves$",
    "model.safetensors.index.json": r"pass the arrays of all its files as one mapping, such as \{\*\*safetensors\.num",
    "marked.json": "pass the file of the tensors themselves$",
    "notes.bin": "check that it is the file of the weights, and download it again if so$",
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_files_without_weights_are_named_by_their_kind(name, tmp_path):
    contents, kind = NO_WEIGHTS[name]
    (tmp_path / name).write_bytes(contents)
    remedy = REMEDIES[name]
    message = rf"{name} is {kind}, and weights must be in a file of safetensors, \.npz or PyTorch: {remedy}"
    with pytest.raises(ValueError, match=message):
        small_from_torch(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is {kind}, and was not written by hmt_jax\.models\.save: {remedy}"):
        models.load(tmp_path / name)


def test_an_archive_whose_directory_is_blank_is_refused(tmp_path):
    """It would be read as one without arrays."""
    np.savez(tmp_path / "it.npz", **{"linear.weight": np.ones((3, 4))})
    content = bytearray((tmp_path / "it.npz").read_bytes())
    content[-14:-6] = bytes(8)  # the number of members, and the length of their directory
    (tmp_path / "it.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"it\.npz is an archive that holds nothing, or whose end is damaged: copy or"):
        models.from_torch("logistic", tmp_path / "it.npz", image_shape=(2, 2, 1))


def test_archives_of_other_files_are_told_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("README", b"")
    with pytest.raises(ValueError, match=r"all\.zip is a zip archive of other files, .*: unpack it, and pass the"):
        small_from_torch(tmp_path / "all.zip")


def test_archives_of_keras_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.keras", "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"")
    with pytest.raises(
        ValueError, match=r"it\.keras is a file of HDF5 or Keras, .*: save its arrays, by PyTorch's names"
    ):
        small_from_torch(tmp_path / "it.keras")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            ".metadata",
            r"convert it with torch\.distributed\.checkpoint\.format_utils\.dcp_to_torch_save, and pass the new",
        ),
        ("zero_to_fp32.py", r"run its zero_to_fp32\.py, and pass the file that this writes$"),
        (
            "model.safetensors.index.json",
            "its weights are in several files: pass the arrays of all its files as one map",
        ),
    ],
)
def test_folders_of_weights_are_told_what_to_do(name, remedy, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f" is a folder: {remedy}"):
        small_from_torch(tmp_path)


def test_paths_with_a_nul_character_are_refused():
    for read in (small_from_torch, models.load):
        with pytest.raises(ValueError, match=r"^file is 'it\\x00\.npz', and no path may hold .*: leave it out$"):
            read("it\0.npz")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for file, kind in ((tmp_path / "pipe.pth", "no regular file"), (tmp_path, "a folder")):
        for read in (small_from_torch, models.load):
            with pytest.raises(ValueError, match=f" is {kind}: pass the file of the weights$"):
                read(file)


def test_each_reader_says_which_one_the_other_files_need(tmp_path):
    models.save(tmp_path / "ours.safetensors", small_classifier(), architecture=ARCHITECTURE)
    with pytest.raises(ValueError, match=r"was written by hmt_jax\.models\.save: read it with hmt_jax\.models\.load$"):
        small_from_torch(tmp_path / "ours.safetensors")
    with zipfile.ZipFile(tmp_path / "theirs.pth", "w") as archive:
        archive.writestr("theirs/data.pkl", b"")
    with pytest.raises(
        ValueError, match=r"theirs\.pth is a zip archive, and was .*: read PyTorch's weights with hmt_jax\.mo"
    ):
        models.load(tmp_path / "theirs.pth")


@pytest.mark.parametrize("name", ["a.npy", "bomb/data/0"])
def test_archives_that_grow_beyond_all_weights_are_not_unpacked(name, tmp_path):
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, bytes(70_000_000))
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"would take 0\.07 GB unpacked, and the weights of logistic take 4e-08 GB: if you"
    ):
        small_from_torch(file)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "it.npz", **SMALL)
    check_small(small_from_torch("~/it.npz"))
    models.save(tmp_path / "it.safetensors", small_classifier(), architecture=ARCHITECTURE)
    models.load("~/it.safetensors")


def test_statistics_of_a_classifier_of_ones_own_are_checked():
    for mean, std, message in [
        ([0.0], [np.inf], "std must be positive and finite, got inf"),
        ([0.0], [1e-60], r"std must be positive and finite, got 0\.0"),  # what float32 makes of it
        ([np.nan], [1.0], "mean must be finite, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            models.Normalized(Identity(), jnp.asarray(mean), jnp.asarray(std))


ARCHITECTURE = {"name": "logistic", "image_shape": [2, 2, 1], "num_classes": 2}


def small_classifier():
    return models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)


def test_a_saved_classifier_may_be_read_by_whom_other_files_may(tmp_path):
    (tmp_path / "other").touch()
    models.save(tmp_path / "saved", small_classifier(), architecture=ARCHITECTURE)
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "other").stat().st_mode
    np.testing.assert_array_equal(
        models.load(tmp_path / "saved")[0].network.linear.kernel[...], small_classifier().network.linear.kernel[...]
    )


def test_what_could_not_be_opened_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="architecture must hold name, image_shape and num_classes, but lacks name"):
        models.save(tmp_path / "saved", small_classifier(), architecture=dict(list(ARCHITECTURE.items())[1:]))
    for wrong in ({"num_classes": 7}, {"name": "mlp"}):
        with pytest.raises(ValueError, match=r"the classifier is not of the architecture .*: pass the arguments that"):
            models.save(tmp_path / "saved", small_classifier(), architecture={**ARCHITECTURE, **wrong})
    with pytest.raises(ValueError, match=r"has an option that it does not take: .*num_hiden"):
        models.save(tmp_path / "saved", small_classifier(), architecture={**ARCHITECTURE, "num_hiden": (8,)})
    with pytest.raises(ValueError, match="unknown model 'foo'; the known ones are"):
        models.save(tmp_path / "saved", small_classifier(), architecture={**ARCHITECTURE, "name": "foo"})
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path / 'nowhere'} to write"):
        models.save(tmp_path / "nowhere" / "saved", small_classifier(), architecture=ARCHITECTURE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "header", "message"),
    [
        (
            {"network.linear.kernel": np.ones((4, 2), np.int8)},
            {},
            r"network\.linear\.kernel of .* holds int8, and weights",
        ),
        ({"std": np.array([np.inf], np.float32)}, {}, "saved can't be read, .*: std must be positive .*, got inf"),
        ({"mean": None}, {}, r"the arrays of .*saved do not fit its architecture \{'name': 'logistic'"),
        ({}, {"hmt_jax": '{"architecture"'}, "saved can't be read, it may be cut off or of another kind: Expecting"),
        ({}, {"hmt_jax": "[]"}, "saved has no architecture in its metadata: write it again with hmt_jax.models.save"),
        (
            {},
            {"hmt_jax": '{"architecture": {"name": "logistic"}}'},
            "saved can't be read, .* the architecture .*image_shape",
        ),
    ],
)
def test_damaged_files_of_classifiers_are_named(changes, header, message, tmp_path):
    models.save(tmp_path / "saved", small_classifier(), architecture=ARCHITECTURE)
    with safetensors.safe_open(tmp_path / "saved", framework="numpy") as opened:
        metadata = opened.metadata()
    arrays = load_file(tmp_path / "saved") | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    save_file(arrays, tmp_path / "saved", metadata | header)
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path / "saved")


def test_plots_name_the_extra_that_installs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hmt_jax.plots", raising=False)
    monkeypatch.delattr(hmt_jax, "plots", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"without matplotlib: pip install 'hmt-jax\[plots\]', or '\.\[plots\]'"
    ):
        importlib.import_module("hmt_jax.plots")
