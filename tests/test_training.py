"""Training and evaluation, against loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hmt_jax import models, training

RECIPE = training.Recipe(num_epochs=3, batch_size=4, max_learning_rate=0.5)


@pytest.fixture(scope="module")
def samples():
    """18 images of 2 x 3 pixels in three classes: four batches of 4 and one of 2."""
    rng = np.random.default_rng(0)
    return rng.uniform(size=(18, 2, 3, 1)).astype(np.float32), rng.integers(0, 3, 18)


@pytest.fixture(scope="module")
def logistic():
    return models.create("logistic", jax.random.key(0), image_shape=(2, 3, 1), num_classes=3, mean=(0.5,), std=(0.2,))


def weights_of(classifier):
    layer = classifier.network.linear
    return np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)


def softmax_gradient(images, labels, kernel, bias):
    """Mean cross-entropy of logistic regression and its gradients, in NumPy."""
    features = (images.reshape(len(images), -1).astype(np.float64) - 0.5) / 0.2
    logits = features @ kernel + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    loss = -np.mean(np.log(probabilities[np.arange(len(labels)), labels]))
    error = (probabilities - np.eye(3)[labels]) / len(labels)
    return loss, features.T @ error, error.sum(0), np.mean(logits.argmax(1) == labels)


def numpy_sgd(images, labels, kernel, bias, order):
    """The recipe of the paper as PyTorch's SGD does it, over batches of 4 in the given orders of the epochs."""
    num_batches = -(-len(images) // 4)
    total, step = RECIPE.num_epochs * num_batches, 0
    momenta = [np.zeros_like(kernel), np.zeros_like(bias)]
    parameters = [kernel.copy(), bias.copy()]
    for epoch in range(RECIPE.num_epochs):
        for first in range(0, len(images), 4):
            chosen = order[epoch][first : first + 4]
            _, *gradients, _ = softmax_gradient(images[chosen], labels[chosen], *parameters)
            norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
            step += 1
            rate = np.interp(step, [0, 0.4 * total, total], [0, 0.5, 0])
            for i, gradient in enumerate(gradients):
                clipped = gradient * min(1, 0.5 / norm)
                momenta[i] = 0.9 * momenta[i] + clipped + 5e-4 * parameters[i]
                parameters[i] = parameters[i] - rate * momenta[i]
    return parameters


def test_training_is_the_recipe(samples, logistic):
    key = jax.random.key(5)
    images, labels = samples
    trained = training.train(logistic, images, labels, RECIPE, key)
    order = [np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), 18)) for epoch in range(3)]
    expected = numpy_sgd(images, labels, *weights_of(logistic), order)
    # float32 over 15 steps
    for found, wanted in zip(weights_of(trained), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_training_leaves_the_given_classifier_alone(samples, logistic):
    before = [array.copy() for array in weights_of(logistic)]
    training.train(logistic, *samples, RECIPE, jax.random.key(0))
    for array, copy in zip(weights_of(logistic), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_statistics_are_not_trained(samples, logistic):
    trained = training.train(logistic, *samples, RECIPE, jax.random.key(0))
    np.testing.assert_array_equal(trained.mean[...], logistic.mean[...])
    np.testing.assert_array_equal(trained.std[...], logistic.std[...])


def test_device_loop_is_the_host_loop(samples, logistic):
    images, labels = jnp.asarray(samples[0]), jnp.asarray(samples[1], jnp.int32)
    key = jax.random.key(2)
    state, metrics = training.train_epoch(training.start(logistic, RECIPE, 18), images, labels, RECIPE, key)
    scanned, sums = training._scan_epoch(RECIPE, training.start(logistic, RECIPE, 18), images, labels, key)
    # The same products in another compiled program.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, scanned)
    np.testing.assert_allclose(metrics.loss, sums.loss / 18, rtol=1e-6)


def test_8_bit_images_are_divided_by_255(logistic):
    images = np.random.default_rng(3).integers(0, 256, (8, 2, 3, 1), dtype=np.uint8)
    labels = np.arange(8) % 3
    from_bytes = training.evaluate(logistic, images, labels)
    from_floats = training.evaluate(logistic, (images / 255).astype(np.float32), labels)
    assert from_bytes == pytest.approx(from_floats, rel=1e-6)  # float32, the division in another program


@pytest.mark.parametrize("batch_size", [1, 5, 18, 100])
def test_evaluation_is_exact_for_every_batch_size(samples, logistic, batch_size):
    metrics = training.evaluate(logistic, *samples, batch_size=batch_size)
    loss, _, _, accuracy = softmax_gradient(*samples, *weights_of(logistic))
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)  # float32
    assert metrics.accuracy == accuracy


def test_metrics_of_an_epoch_are_means_over_its_samples(samples, logistic):
    # One batch of all samples: the metrics are those before the only step.
    recipe = dataclasses.replace(RECIPE, batch_size=32, num_epochs=1)
    seen = []
    training.train(logistic, *samples, recipe, jax.random.key(0), on_epoch=lambda *record: seen.append(record))
    ((epoch, _, metrics),) = seen
    loss, _, _, accuracy = softmax_gradient(*samples, *weights_of(logistic))
    assert epoch == 0
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)  # float32
    assert metrics.accuracy == pytest.approx(accuracy)


def test_same_key_same_classifier(samples, logistic):
    first, second, other = (training.train(logistic, *samples, RECIPE, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(weights_of(first)[0], weights_of(second)[0])
    assert (weights_of(first)[0] != weights_of(other)[0]).any()


def test_networks_of_one_architecture_share_the_compiled_step(samples):
    num_traces = 0

    class Counted(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, images):
            nonlocal num_traces
            num_traces += 1
            return self.linear(images.reshape(len(images), -1))

    training.train(Counted(nnx.Rngs(0)), *samples, RECIPE, jax.random.key(0))
    after_first = num_traces
    training.train(Counted(nnx.Rngs(1)), *samples, RECIPE, jax.random.key(1))
    assert num_traces == after_first


def test_bad_recipes():
    with pytest.raises(ValueError, match="num_epochs must be positive, got 0"):
        training.Recipe(num_epochs=0)
    with pytest.raises(ValueError, match=r"weight_decay must not be negative, got -0\.1"):
        training.Recipe(weight_decay=-0.1)
    with pytest.raises(ValueError, match="max_learning_rate must be positive, got nan"):
        training.Recipe(max_learning_rate=float("nan"))


def test_bad_samples(samples, logistic):
    images, labels = samples
    for wrong in ((images, labels[:-1]), (images[..., 0], labels), (images[:0], labels[:0])):
        with pytest.raises(
            ValueError, match=r"images must have shape \(N, height, width, channels\) and labels \(N,\)"
        ):
            training.train(logistic, *wrong, RECIPE, jax.random.key(0))


def test_loss_that_is_not_finite_stops_training(samples, logistic):
    images, labels = samples
    broken = np.where(np.arange(18).reshape(-1, 1, 1, 1) == 7, np.nan, images)
    with pytest.raises(FloatingPointError, match="training loss became nan in epoch 0: lower max_learning_rate"):
        training.train(logistic, broken, labels, RECIPE, jax.random.key(0))
