"""One network written in every way that a classifier can be written in."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import hmt_jax
from hmt_jax import attacks, classifiers, models, subspaces, training

SHAPE = (4, 3, 2)
NUM_PIXELS, NUM_HIDDEN, NUM_CLASSES = 24, 6, 3

# How often the body of a network was traced.
TRACES = []


def activation(x):
    TRACES.append(x.shape)
    return jax.nn.softplus(x)


class Weights(NamedTuple):
    """A network, as the callable pytree that it may be."""

    first: jax.Array
    first_bias: jax.Array
    second: jax.Array
    second_bias: jax.Array

    def __call__(self, images):
        hidden = activation(images.reshape(len(images), -1) @ self.first + self.first_bias[None])
        return hidden @ self.second + self.second_bias[None]


class NnxNetwork(nnx.Module):
    def __init__(self, weights):
        self.hidden = nnx.Linear(NUM_PIXELS, NUM_HIDDEN, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(NUM_HIDDEN, NUM_CLASSES, rngs=nnx.Rngs(0))
        self.hidden.kernel[...], self.hidden.bias[...] = weights.first, weights.first_bias
        self.head.kernel[...], self.head.bias[...] = weights.second, weights.second_bias

    def __call__(self, images):
        return self.head(activation(self.hidden(images.reshape(len(images), -1))))


class LinenNetwork(linen.Module):
    num_hidden: int
    num_classes: int

    @linen.compact
    def __call__(self, images):
        hidden = activation(linen.Dense(self.num_hidden, name="hidden")(images.reshape(len(images), -1)))
        return linen.Dense(self.num_classes, name="head")(hidden)


def linen_variables(weights):
    return {
        "params": {
            "hidden": {"kernel": weights.first, "bias": weights.first_bias},
            "head": {"kernel": weights.second, "bias": weights.second_bias},
        }
    }


class EquinoxNetwork(equinox.Module):
    """With an activation function and a number among the leaves."""

    weights: Weights
    activation: Callable
    scale: float = 1.0

    def __call__(self, images):
        first, first_bias, second, second_bias = self.weights
        hidden = self.activation(images.reshape(len(images), -1) @ first + first_bias[None])
        return self.scale * (hidden @ second) + second_bias[None]


KINDS = {
    "Partial": lambda weights: jax.tree_util.Partial(Weights.__call__, weights),
    "NamedTuple": lambda weights: weights,
    "nnx": NnxNetwork,
    "Linen": lambda weights: LinenNetwork(NUM_HIDDEN, NUM_CLASSES).bind(linen_variables(weights)),
    "Equinox": lambda weights: EquinoxNetwork(weights, activation),
}


def random_weights(seed):
    rng = np.random.default_rng(seed)
    shapes = [(NUM_PIXELS, NUM_HIDDEN), (NUM_HIDDEN,), (NUM_HIDDEN, NUM_CLASSES), (NUM_CLASSES,)]
    return Weights(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


random_images = partial(helpers.random_images, 5, *SHAPE, seed=7, dtype="float32")


def measure(classifier):
    window = subspaces.dct_window(SHAPE, row=0, column=1, size=2)
    return hmt_jax.measure_margins(
        classifier, random_images(), window, hmt_jax.solvers.DeepFool(), devices=jax.devices()[:1], batch_size=3
    )


def numpy_logits(weights, images):
    first, first_bias, second, second_bias = (np.asarray(parameter, np.float64) for parameter in weights)
    hidden = np.logaddexp(0, images.reshape(len(images), -1) @ first + first_bias)
    return hidden @ second + second_bias


@pytest.fixture(scope="module")
def expected():
    """Margins of plain functions that hold their weights, for two sets of weights."""

    def plain_function(weights):
        return lambda images: weights(images)

    return [measure(plain_function(random_weights(seed))) for seed in (0, 1)]


@pytest.mark.parametrize("kind", helpers.slow_except(KINDS, "Partial", "nnx"))
def test_every_kind_of_classifier_gives_the_same_margins_and_shares_one_compilation(kind, expected):
    num_traces = []
    for seed in (0, 1):
        result = measure(KINDS[kind](random_weights(seed)))
        num_traces.append(len(TRACES))
        labels = np.argmax(numpy_logits(random_weights(seed), random_images()), axis=1)
        np.testing.assert_array_equal(result.label, labels[None])
        # A few steps of DeepFool on logits that are rounded otherwise.
        np.testing.assert_allclose(result.margin, expected[seed].margin, rtol=1e-4)
        np.testing.assert_array_equal(result.num_steps, expected[seed].num_steps)
        assert result.is_converged.all()
    assert num_traces[0] == num_traces[1]


@pytest.mark.parametrize("kind", helpers.slow_except(KINDS, "Partial", "nnx"))
def test_weights_are_data_of_single_margins_too(kind):
    image, subspace = random_images()[0], subspaces.full(SHAPE)
    first = hmt_jax.measure_margin(KINDS[kind](random_weights(0)), image, subspace, hmt_jax.solvers.DeepFool())
    num_traces = len(TRACES)
    second = hmt_jax.measure_margin(KINDS[kind](random_weights(1)), image, subspace, hmt_jax.solvers.DeepFool())
    assert len(TRACES) == num_traces
    assert first.margin != second.margin


@pytest.mark.parametrize("kind", helpers.slow_except(KINDS, "Partial", "nnx"))
def test_classifiers_become_pytrees_of_arrays(kind):
    weights = random_weights(0)
    classifier = classifiers.as_pytree(KINDS[kind](weights))
    leaves = jax.tree.leaves(classifier)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert sorted(leaf.shape for leaf in leaves) == sorted(leaf.shape for leaf in weights)
    logits = jax.jit(lambda classifier, images: classifier(images))(classifier, random_images())
    # Sums of 24 numbers of the order of 1, in float32.
    np.testing.assert_allclose(logits, numpy_logits(weights, random_images()), rtol=0, atol=2e-5)
    # As they are already, they stay so.
    assert jax.tree.structure(classifiers.as_pytree(classifier)) == jax.tree.structure(classifier)


def test_what_is_no_array_is_part_of_the_compiled_program():
    weights, images = random_weights(0), random_images()
    compiled = jax.jit(lambda classifier, images: classifier(images))
    for scale in (1.0, 2.0):
        scaled = weights._replace(second=scale * weights.second)
        classifier = classifiers.as_pytree(EquinoxNetwork(weights, activation, scale))
        np.testing.assert_allclose(compiled(classifier, images), numpy_logits(scaled, images), rtol=0, atol=4e-5)


@pytest.mark.parametrize("settings", [(True, 1, 1.0), (0.0, -0.0)])
def test_equal_numbers_that_are_not_the_same_are_told_apart(settings):
    def letters(setting, images):
        return jnp.array([[ord(letter) for letter in repr(setting)]])

    compiled = jax.jit(lambda classifier: classifier(jnp.zeros((1, *SHAPE))))
    for setting in settings:
        classifier = classifiers.as_pytree(jax.tree_util.Partial(letters, setting))
        assert compiled(classifier).tolist() == [[ord(letter) for letter in repr(setting)]]


class Regularised(nnx.Module):
    """Linear logits behind what behaves otherwise in training."""

    def __init__(self, layers):
        self.layers = nnx.List(layers)

    def __call__(self, images):
        for layer in self.layers:
            images = layer(images)
        return images.reshape(len(images), -1)[:, :2]


def batch_norm():
    return nnx.BatchNorm(SHAPE[2], rngs=nnx.Rngs(0))


def dropout():
    return nnx.Dropout(0.5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: Regularised([dropout()]), r"layers\.0"),
        (lambda: Regularised([jnp.square, batch_norm()]), r"layers\.1"),
        (lambda: Regularised([nnx.Sequential(jnp.square, dropout())]), r"layers\.0\.layers\.1"),
        (lambda: batch_norm(), "BatchNorm"),
    ],
    ids=["dropout", "batch norm", "nested", "itself"],
)
def test_modules_in_training_mode_are_refused(module, name):
    message = rf"the classifier's {name} is in training mode: call classifier\.eval\(\) first"
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(module(), random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margin(module(), random_images()[0], subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())


class TrainsWhenCalled(nnx.Module):
    """In training mode if the call says so, which `eval` does not change."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, images, train=True):
        argument = "deterministic" if isinstance(self.layer, nnx.Dropout) else "use_running_average"
        return self.layer(images, **{argument: not train})[:, 0, 0, :2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)), lambda: nnx.BatchNorm(SHAPE[2], rngs=nnx.Rngs(0))],
    ids=["dropout", "batch norm"],
)
def test_calls_in_training_mode_are_refused(layer):
    module, images = TrainsWhenCalled(layer()), random_images()
    module.eval()
    for measure in (
        lambda classifier: training.evaluate(classifier, images, np.zeros(len(images), int)),
        lambda classifier: hmt_jax.measure_margins(
            classifier, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool()
        ),
        lambda classifier: hmt_jax.measure_margin(
            classifier, images[0], subspaces.full(SHAPE), hmt_jax.solvers.DeepFool()
        ),
    ):
        with pytest.raises(ValueError, match="a call updates its batch statistics, or draws random numbers; pass"):
            measure(module)
        measure(lambda images: module(images, train=False))


class WritesBack(nnx.Module):
    """A transformed call writes every variable back, in evaluation mode, too."""

    def __init__(self):
        self.norm = nnx.BatchNorm(SHAPE[2], rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    @nnx.remat
    def __call__(self, images):
        return self.dropout(self.norm(images))[:, 0, 0, :2]


@pytest.mark.slow
def test_calls_that_write_back_what_they_read_are_measured():
    module = WritesBack()
    module.eval()
    # Statistics at their start, mean 0 and variance 1: the logits are two channels of the first pixel.
    labels = random_images()[:, 0, 0, :2].argmax(1)
    assert training.evaluate(module, random_images(), labels).accuracy == 1
    assert measure(module).label.tolist() == [labels.tolist()]


class EquinoxLayers(equinox.Module):
    layers: list

    def __call__(self, images):
        for layer in self.layers:
            images = layer(images)
        return images.reshape(len(images), -1)[:, :2]


class EquinoxBatchNorm(equinox.Module):
    """Batch norm of Equinox, which works on one image (channels, ...) and keeps its statistics apart."""

    norm: equinox.nn.BatchNorm
    state: equinox.nn.State

    def __call__(self, images):
        normalize = jax.vmap(lambda image: self.norm(jnp.moveaxis(image, -1, 0), self.state)[0], axis_name="batch")
        return jnp.moveaxis(normalize(images), 1, -1)


def equinox_batch_norm():
    return EquinoxBatchNorm(*equinox.nn.make_with_state(equinox.nn.BatchNorm)(SHAPE[2], "batch", mode="batch"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: EquinoxLayers([jnp.square, equinox.nn.Dropout(0.5)]), r"layers\.1"),
        (lambda: EquinoxLayers([equinox_batch_norm()]), r"layers\.0\.norm"),
        (lambda: jax.tree_util.Partial(EquinoxLayers.__call__, EquinoxLayers([equinox_batch_norm()])), r".*\.norm"),
        (lambda: equinox.nn.Dropout(0.5), "Dropout"),
    ],
    ids=["dropout", "batch norm", "Partial", "itself"],
)
def test_equinox_modules_in_training_mode_are_refused(module, name):
    message = rf"the classifier's {name} is in training mode: pass equinox\.nn\.inference_mode\(classifier\) instead"
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(module(), random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margin(module(), random_images()[0], subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())


@pytest.mark.slow
def test_equinox_modules_in_inference_mode_are_measured():
    layers = [equinox.nn.Dropout(0.5), equinox_batch_norm()]
    result = measure(equinox.nn.inference_mode(EquinoxLayers(layers)))
    # Statistics at their start, mean 0 and variance 1: the logits are the two channels of the first pixel.
    gaps = np.abs(random_images()[:, 0, 0, 0] - random_images()[:, 0, 0, 1])
    norm = np.sqrt(2) * np.linalg.norm(linear_map_of_first_pixel())
    np.testing.assert_allclose(result.margin[0], 1.02 * gaps / norm, rtol=1e-4)


class LinenRegularised(linen.Module):
    """Linear logits behind what behaves otherwise in training."""

    kind: str
    is_training: bool

    @linen.compact
    def __call__(self, images):
        if self.kind == "norm":
            images = linen.BatchNorm(use_running_average=not self.is_training, name="norm")(images)
        else:
            images = linen.Dropout(0.5, deterministic=not self.is_training, name="dropout")(images)
        return images.reshape(len(images), -1)[:, :2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("norm", 'Cannot update variable "mean" in "/norm" because collection "batch_stats" is immutable'),
        ("dropout", 'dropout needs PRNG for "dropout"'),
    ],
)
def test_linen_modules_in_training_mode_are_refused(kind, reason):
    variables = LinenRegularised(kind, False).init(jax.random.key(0), random_images())
    measure(LinenRegularised(kind, False).bind(variables))
    # What it may be bound with does not make it a function of the images.
    classifier = LinenRegularised(kind, True).bind(
        variables, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
    )
    message = (
        rf"the classifier is in training mode \({reason}\): make its module with use_running_average=True for "
        "BatchNorm and deterministic=True for Dropout"
    )
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(classifier, random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margin(classifier, random_images()[0], subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda module: module.eval() or module,
        lambda module: nnx.view(module, deterministic=True, use_running_average=True),
    ],
    ids=["eval", "view"],
)
def test_modules_in_evaluation_mode_use_running_statistics(evaluate):
    norm = batch_norm()
    mean, variance = np.array([0.25, -0.5]), np.array([4.0, 0.25])
    norm.mean[...], norm.var[...] = mean, variance
    module = Regularised([dropout(), norm])
    result = measure(evaluate(module))
    # Logits are the two channels of the first pixel; the window has 2 x 2 of the 4 x 3 frequencies of each.
    means_of_cosines = linear_map_of_first_pixel()
    logits = (random_images()[:, 0, 0] - mean) / np.sqrt(variance + norm.epsilon)
    norms = np.linalg.norm(means_of_cosines) * np.sqrt(np.sum(1 / (variance + norm.epsilon)))
    np.testing.assert_allclose(result.margin[0], 1.02 * np.abs(logits[:, 0] - logits[:, 1]) / norms, rtol=1e-5)


def linear_map_of_first_pixel():
    """The first pixel of one channel of the window of `measure`, as a function of its coordinates."""
    rows = [np.sqrt(1 / 4), np.sqrt(2 / 4) * np.cos(np.pi / 8)]
    columns = [np.sqrt(2 / 3) * np.cos(np.pi / 6), np.sqrt(2 / 3) * np.cos(np.pi / 3)]
    return np.outer(rows, columns)


def test_linen_modules_must_be_bound():
    module = LinenNetwork(NUM_HIDDEN, NUM_CLASSES)
    with pytest.raises(
        ValueError,
        match=r"a Flax Linen module has no parameters of its own: pass module\.bind\(variables\), or "
        r"jax\.tree_util\.Partial\(module\.apply, variables\)",
    ):
        hmt_jax.measure_margins(module, random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())


def test_applying_a_linen_module_by_hand_is_the_same(expected):
    module = LinenNetwork(NUM_HIDDEN, NUM_CLASSES)
    result = measure(jax.tree_util.Partial(module.apply, linen_variables(random_weights(0))))
    np.testing.assert_allclose(result.margin, expected[0].margin, rtol=1e-4)


def test_the_restriction_is_the_classifier_around_the_image():
    weights, image = random_weights(0), random_images()[0]
    window = subspaces.dct_window(SHAPE, row=0, column=1, size=2)
    z = np.random.default_rng(1).normal(size=window.dimension).astype(np.float32)
    restriction = classifiers.restrict(weights, image, window)
    np.testing.assert_allclose(restriction(jnp.zeros(8)), numpy_logits(weights, image[None])[0], rtol=0, atol=2e-5)
    moved = image + np.asarray(window.embed(z))
    np.testing.assert_allclose(restriction(z), numpy_logits(weights, moved[None])[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("pixel", [np.nan, np.inf])
def test_the_restriction_of_a_bad_image_is_nan_whatever_the_classifier_makes_of_it(pixel):
    image = random_images()[0]
    image[3, 2, 1] = pixel
    classifier = classifiers.as_pytree(lambda images: images[:, 0, 0])
    restriction = classifiers.restrict(classifier, image, subspaces.full(SHAPE))
    assert np.isnan(restriction(jnp.zeros(NUM_PIXELS))).all()


def two_logits(images):
    return images.reshape(len(images), -1)[:, :2]


class Scaling:
    """No pytree: an object that can be called."""

    scale = 1.0

    def __call__(self, images):
        return self.scale * two_logits(images)


@pytest.mark.slow
def test_functions_are_measured_as_they_are_now():
    """What they close over may have changed since they were measured before."""
    images, module, scaling = random_images(), nnx.Linear(24, 3, use_bias=False, rngs=nnx.Rngs(0)), Scaling()
    labels = np.zeros(len(images), int)

    def predict(images):
        return module(images.reshape(len(images), -1))

    before = [hmt_jax.measure_margins(predict, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool()).margin]
    before.append(training.evaluate(scaling, images, labels).loss)
    module.kernel[...] = module.kernel[...] * jnp.array([[2, -2, 6]])
    scaling.scale = 5.0
    after = [hmt_jax.measure_margins(predict, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool()).margin]
    after.append(training.evaluate(scaling, images, labels).loss)
    weights = module.kernel[...]
    linear = jax.tree_util.Partial(lambda weights, images: images.reshape(len(images), -1) @ weights, weights)
    expected = [hmt_jax.measure_margins(linear, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool()).margin]
    expected.append(training.evaluate(lambda images: 5 * two_logits(images), images, labels).loss)
    for found, past, wanted in zip(after, before, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert not np.allclose(past, wanted, rtol=1e-2)


def test_functions_of_jit_are_compiled_once():
    traces = []

    @jax.jit
    def predict(images):
        traces.append(images.shape)
        return two_logits(images)

    for _ in range(2):
        hmt_jax.measure_margins(predict, random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    num_traces = len(traces)
    hmt_jax.measure_margins(predict, random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    assert len(traces) == num_traces > 0


CALLS = {
    "measure_margins": lambda function, images: hmt_jax.measure_margins(
        function, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool(), devices=jax.devices()[:1]
    ),
    "measure_margin": lambda function, images: hmt_jax.measure_margin(
        function, images[0], subspaces.full(SHAPE), hmt_jax.solvers.DeepFool()
    ),
    "training.evaluate": lambda function, images: training.evaluate(function, images, np.zeros(len(images), int)),
    "attacks.evaluate": lambda function, images: attacks.evaluate(
        two_logits,
        images,
        np.zeros(len(images), int),
        lambda classifier, images, labels, key: images + 0 * function(images)[:, :1, None, None],
        jax.random.key(0),
    ),
    "PGD": lambda function, images: attacks.PGD(norm="l2", epsilon=0.1, num_steps=1)(
        function, images, np.zeros(len(images), int), jax.random.key(0)
    ),
    "augment": lambda function, images: training.train(
        models.create("logistic", jax.random.key(0), image_shape=SHAPE, num_classes=2),
        images,
        np.zeros(len(images), int),
        training.Recipe(num_epochs=2, augment=lambda key, batch: batch + 0 * function(batch)[:, :1, None, None]),
        jax.random.key(0),
        devices=jax.devices()[:1],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", helpers.slow_except(CALLS, "measure_margins", "augment"))
def test_nothing_is_kept_of_a_function_after_the_call(call):
    """No programs, and nothing that the function closes over: a new function in every call would fill the memory."""
    (client,) = {device.client for device in jax.devices()}

    def measure_new_function():
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(NUM_PIXELS, 2)), jnp.float32)

        def predict(images):
            return jax.nn.relu(images.reshape(len(images), -1) @ weights)

        CALLS[call](predict, random_images()[:2])
        return weakref.ref(predict), weakref.ref(weights)

    measure_new_function()
    num_programs = len(client.live_executables())
    references = measure_new_function()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(client.live_executables()) <= num_programs


def test_a_function_keeps_one_identity_while_it_is_in_use():
    classifier = classifiers.as_pytree(two_logits)
    leaves, structure = jax.tree.flatten(classifier)
    assert jax.tree.unflatten(structure, leaves) is classifier
    assert structure == jax.tree.structure(classifier) != jax.tree.structure(classifiers.as_pytree(two_logits))


def test_what_models_load_returns_is_no_classifier():
    with pytest.raises(TypeError, match=r"must be callable .* got <class 'tuple'>; pass its first item"):
        classifiers.as_pytree((two_logits, {}))


@pytest.mark.parametrize(
    ("classifier", "remedy"),
    [
        (lambda parameters, images: images @ parameters, r"pass a function of images alone, jax\.tree_util\.Partial"),
        (lambda images: jnp.asarray(np.tanh(np.asarray(images))), r"compute with jax\.numpy, since NumPy"),
        (
            lambda images: images[:, :2, 0, 0] if images.sum() > 0 else images[:, 2:4, 0, 0],
            r"choose by jax\.numpy\.where, since values are not known",
        ),
        (
            lambda images: images[:, :2, 0, 0] - float(images.mean()),
            r"leave out float\(\), int\(\) and item\(\), since values are not known",
        ),
        (lambda images: images.reshape(len(images), -1) @ jnp.ones((7, 2)), "pass it images of the shape that it was"),
        (
            models.create("lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=2),
            "pass it images of the shape that it was",
        ),
    ],
    ids=["parameters", "NumPy", "choice", "number", "shape", "channels"],
)
def test_the_remedy_fits_the_error(classifier, remedy):
    images = np.zeros((1, *SHAPE), np.float32)
    with pytest.raises(
        ValueError, match=rf"classifier can't be applied to images of shape \(N, 4, 3, 2\): .*; {remedy}"
    ):
        hmt_jax.measure_margins(classifier, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())


def flat(images):
    return images.reshape(*images.shape[:-3], -1)


LINEAR = np.random.default_rng(11).normal(size=(NUM_PIXELS, NUM_CLASSES)).astype(np.float32)


class TakesMore(nnx.Module):
    """Linear logits, by calls that take what training needs, too."""

    def __init__(self):
        self.weights = nnx.Param(jnp.asarray(LINEAR))


class TakesTrain(TakesMore):
    def __call__(self, images, train):
        assert train is False
        return flat(images) @ self.weights[...]


class TakesRngs(TakesMore):
    def __call__(self, images, *, rngs):
        assert rngs is None
        return flat(images) @ self.weights[...]


class TakesOneImage(TakesMore):
    def __call__(self, image):
        return image.reshape(-1) @ self.weights[...]


class LinenTakesTrain(linen.Module):
    @linen.compact
    def __call__(self, images, train):
        assert train is False
        return linen.Dense(NUM_CLASSES, use_bias=False, name="head")(flat(images))


LINEN_VARIABLES = {"params": {"head": {"kernel": jnp.asarray(LINEAR)}}}


class LinenTakesOneImage(linen.Module):
    @linen.compact
    def __call__(self, image):
        return linen.Dense(NUM_CLASSES, use_bias=False, name="head")(image.reshape(-1))


class EquinoxTakesState(equinox.Module):
    weights: jax.Array
    activation: Callable = jnp.asarray

    def __call__(self, images, state):
        return self.activation(flat(images) @ self.weights + state[None]), state


class EquinoxTakesKey(equinox.Module):
    weights: jax.Array

    def __call__(self, images, *, key):
        assert key is None
        return flat(images) @ self.weights


class EquinoxTakesOneImage(equinox.Module):
    """With channels first, as layers of Equinox."""

    weights: jax.Array

    def __call__(self, image):
        channels, height, width = image.shape
        assert (height, width, channels) == SHAPE
        return jnp.moveaxis(image, 0, -1).reshape(-1) @ self.weights


class EquinoxTakesVector(equinox.Module):
    layer: equinox.nn.Linear

    def __call__(self, vector):
        return self.layer(vector)


def equinox_takes_vector():
    layer = equinox.nn.Linear(NUM_PIXELS, NUM_CLASSES, use_bias=False, key=jax.random.key(0))
    return EquinoxTakesVector(equinox.tree_at(lambda layer: layer.weight, layer, jnp.asarray(LINEAR.T)))


def takes_train(images, train):
    assert train is False
    return flat(images) @ LINEAR


def takes_one_image(image):
    return image.reshape(-1) @ LINEAR


class Transformed(NamedTuple):
    """Takes parameters first and a random key second, as Haiku's functions do."""

    init: Callable = lambda key, images: LINEAR
    apply: Callable = lambda parameters, rng, images: flat(images) @ parameters


class TransformedWithState(NamedTuple):
    init: Callable = lambda key, images: (LINEAR, {})
    apply: Callable = lambda parameters, state, rng, images: (flat(images) @ parameters, state)


NEED_MORE = {
    "nnx train": (TakesTrain, "it needs train, too"),
    "nnx rngs": (TakesRngs, "it needs rngs, too"),
    "bound method": (lambda: TakesTrain().__call__, "it needs train, too"),
    "Linen train": (lambda: LinenTakesTrain().bind(LINEN_VARIABLES), "it needs train, too"),
    "Linen apply": (
        lambda: jax.tree_util.Partial(LinenTakesTrain().apply, LINEN_VARIABLES),
        "it needs train, too",
    ),
    "Linen, one image": (lambda: LinenTakesOneImage().bind(LINEN_VARIABLES), "it takes one image at a time"),
    "Equinox state": (lambda: EquinoxTakesState(jnp.asarray(LINEAR)), "it needs state, too"),
    "Equinox key": (lambda: EquinoxTakesKey(jnp.asarray(LINEAR)), "it needs key, too"),
    "Equinox, one image": (lambda: EquinoxTakesOneImage(jnp.asarray(LINEAR)), "it takes one image at a time"),
    "Equinox, a vector": (equinox_takes_vector, "it takes one image at a time"),
    "nnx, one image": (TakesOneImage, "it takes one image at a time"),
    "function with train": (lambda: takes_train, "it needs train, too"),
    "function of one image": (lambda: takes_one_image, "it takes one image at a time"),
    "Haiku": (Transformed, "must be callable"),
    "Haiku with state": (TransformedWithState, "must be callable"),
    "Haiku without key": (
        lambda: jax.tree_util.Partial(Transformed().apply, LINEAR),
        "it takes rng before the images",
    ),
}


@pytest.mark.parametrize("kind", NEED_MORE)
def test_the_remedy_for_a_classifier_that_takes_something_else_works(kind):
    make, reason = NEED_MORE[kind]
    classifier = make()
    with pytest.raises((ValueError, TypeError), match=reason) as raised:
        hmt_jax.measure_margins(classifier, random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    remedy = str(raised.value).rpartition("pass ")[2].partition(", with None")[0]
    names = {"classifier": classifier, "module": classifier, "function": classifier, "jax": jax, "parameters": LINEAR}
    names |= {"state": jnp.zeros(NUM_CLASSES), "variables": LINEN_VARIABLES}
    if kind.startswith("Linen"):
        names["module"] = LinenTakesOneImage() if kind == "Linen, one image" else LinenTakesTrain()
    if kind == "Haiku without key":
        names["function"] = Transformed().apply
    helped = classifiers.as_pytree(eval(remedy, names))
    logits = classifiers.logits_of(helped, jnp.asarray(random_images()))
    # Sums of 24 numbers of the order of 1, in float32.
    np.testing.assert_allclose(logits, flat(random_images()) @ LINEAR, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("classifier", "remedy"),
    [
        (
            lambda images: flat(images)[:, 0] - 0.5,
            r"return two logits for a binary classifier, jax\.numpy\.stack\(\[0 \* logit, logit\], axis=-1\)",
        ),
        (
            lambda images: jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((len(images), 2), jnp.float32), images),
            r"it can't be differentiated: compute with jax\.numpy, or define a derivative with jax\.custom_vjp",
        ),
        (
            EquinoxLayers([equinox.nn.Conv2d(3, 2, 1, key=jax.random.key(0))]),
            "Input to `Conv` needs to have rank 3, but input has shape",
        ),
    ],
    ids=["one logit", "callback", "a reason in parts"],
)
def test_the_remedy_fits_what_the_classifier_returns(classifier, remedy):
    with pytest.raises(ValueError, match=remedy):
        hmt_jax.measure_margins(classifier, random_images(), subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())


@pytest.mark.parametrize(
    ("classifier", "remedy"),
    [
        ((two_logits, {}), "; pass its first item$"),
        ((lambda parameters, images: images @ parameters, 1.0), r": pass jax\.tree_util\.Partial\(\*classifier\)$"),
        (({}, two_logits), r": pass jax\.tree_util\.Partial\(function, parameters\), with the function"),
        ((two_logits, two_logits), r": pass jax\.tree_util\.Partial\(function, parameters\), with the function"),
        ((), "got <class 'tuple'>$"),
        ({"apply": two_logits}, "got <class 'dict'>$"),
    ],
    ids=["function first", "function with its parameters", "parameters first", "functions", "empty", "dict"],
)
def test_what_cannot_be_called_has_the_remedy_for_its_kind(classifier, remedy):
    with pytest.raises(TypeError, match=remedy):
        classifiers.as_pytree(classifier)


class CompiledByFlax(Regularised):
    @nnx.jit
    def __call__(self, images):
        return super().__call__(images)


def values_of(module):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Not(nnx.RngState)))]


@pytest.mark.parametrize("kind", [Regularised, CompiledByFlax])
@pytest.mark.parametrize("layer", [dropout, batch_norm])
@pytest.mark.parametrize(
    "function_of",
    [
        lambda module: lambda images: module(images),
        lambda module: jax.tree_util.Partial(lambda images: module(images)),
        lambda module: jax.jit(lambda images: module(images)),
        lambda module: module.__call__,
    ],
    ids=["lambda", "Partial", "jit", "method"],
)
def test_functions_that_would_train_a_module_are_refused_and_leave_it_whole(function_of, layer, kind):
    module, images = kind([layer()]), random_images()
    values = values_of(module)
    with pytest.raises(
        ValueError,
        match=r"the classifier is a function that changes a Flax NNX module when it is called \(Cannot mutate .*\): "
        r"call module\.eval\(\) first .* or pass the module itself as the classifier",
    ):
        hmt_jax.measure_margins(function_of(module), images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    for before, after in zip(values, values_of(module), strict=True):
        np.testing.assert_array_equal(before, after)
    module.eval()
    classifiers.logits_of(classifiers.as_pytree(module), jnp.asarray(images))


def test_images_with_channels_first_are_told_how_to_turn():
    images = np.zeros((1, 2, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"but images have shape \(2, 4, 3\) .*; pass images\.transpose\(0, 2, 3, 1\)"):
        hmt_jax.measure_margins(two_logits, images, subspaces.full(SHAPE), hmt_jax.solvers.DeepFool())
    with pytest.raises(ValueError, match="make the subspaces for that shape"):
        hmt_jax.measure_margins(two_logits, images, subspaces.full((4, 3, 3)), hmt_jax.solvers.DeepFool())


def test_logits_on_a_plane_are_those_of_its_points():
    rng = np.random.default_rng(0)
    (u, v), weights, x, y = (
        rng.normal(size=(2, 24)),
        rng.normal(size=(24, 3)),
        np.linspace(-1, 1, 3),
        np.array([0.0, 2.0]),
    )
    network = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.asarray(weights))
    found = classifiers.logits_on_plane(network, np.stack([u, v], axis=1), x, y, SHAPE)
    expected = [[(x_ * u + y_ * v) @ weights for x_ in x] for y_ in y]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32
    with pytest.raises(
        ValueError, match=r"plane must have two columns of 24 pixels, .* of shape \(4, 3, 2\), got \(2, 24\)"
    ):
        classifiers.logits_on_plane(network, [u, v], x, y, SHAPE)
