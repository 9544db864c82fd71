"""Training and evaluation, against loops in NumPy."""

import dataclasses
import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hmt_jax
from hmt_jax import _devices, attacks, data, models, training
from hmt_jax.training import _step, _train

RECIPE = training.Recipe(num_epochs=3, batch_size=4, max_learning_rate=0.5)
ONE = jax.devices()[:1]
# Where what is seen in a step counts, and not what is learnt.
ONE_STEP = pytest.mark.filterwarnings("ignore:.* make one step in all")


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
    trained = training.train(logistic, images, labels, RECIPE, key, devices=ONE)
    order_keys = [jax.random.split(jax.random.fold_in(key, epoch))[0] for epoch in range(3)]
    order = [np.asarray(jax.random.permutation(order_key, 18)) for order_key in order_keys]
    expected = numpy_sgd(images, labels, *weights_of(logistic), order)
    # float32 over 15 steps
    for found, wanted in zip(weights_of(trained), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_training_leaves_the_given_classifier_alone(samples, logistic):
    before = [array.copy() for array in weights_of(logistic)]
    training.train(logistic, *samples, RECIPE, jax.random.key(0), devices=ONE)
    for array, copy in zip(weights_of(logistic), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_statistics_are_not_trained(samples, logistic):
    trained = training.train(logistic, *samples, RECIPE, jax.random.key(0), devices=ONE)
    np.testing.assert_array_equal(trained.mean[...], logistic.mean[...])
    np.testing.assert_array_equal(trained.std[...], logistic.std[...])


def test_device_loop_is_the_host_loop(samples):
    class Drawing(Convolutional):
        """With a random stream and a variable of its own."""

        def __init__(self):
            super().__init__(nnx.Rngs(0))
            self.rngs, self.drawn = nnx.Rngs(noise=1), nnx.Variable(jnp.zeros(()))

        def __call__(self, images):
            self.drawn[...] += jax.random.uniform(self.rngs.noise())
            return super().__call__(images)

    key, mesh = jax.random.key(2), _devices.mesh(ONE, _step.AXIS)
    placed = jax.device_put((samples[0], samples[1].astype(np.int32)), ONE[0])
    rows, none = _train._order(RECIPE, 18, key), _step._Functions(None, None)

    def state_after(steps_of, **options):
        state = training.start(Drawing(), RECIPE, 18)
        for advance in steps_of(RECIPE, mesh, none, placed, rows, key, 0, **options):
            state = advance(state)
        return state

    by_host, by_device = state_after(_train._host_steps), state_after(_train._device_steps)
    jax.tree.map(
        lambda *found: np.testing.assert_array_equal(*map(_numbers_of, found)),
        state_after(_train._device_steps, block_size=2),
        by_device,
    )
    assert by_host.variables["drawn"][...] > 0
    # The same products in another compiled program.
    for found, expected in zip(jax.tree.leaves(by_device), jax.tree.leaves(by_host), strict=True):
        if not jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def _numbers_of(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class Convolutional(nnx.Module):
    """Three filters, batch norm, and their mean responses, partly dropped out."""

    def __init__(self, rngs, rate=0.0):
        self.conv = nnx.Conv(1, 3, (2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(rate)

    def __call__(self, images):
        return self.dropout(self.norm(self.conv(images)).mean((1, 2)) ** 2)


@pytest.fixture(scope="module")
def convolutional():
    module = Convolutional(nnx.Rngs(0))
    module.eval()
    return module


@ONE_STEP
def test_batch_norm_uses_and_follows_the_statistics_of_batches(samples, convolutional):
    images, labels = samples
    recipe = dataclasses.replace(RECIPE, num_epochs=1, batch_size=18, max_learning_rate=1e-9)
    trained = training.train(convolutional, images, labels, recipe, jax.random.key(0), devices=ONE)
    responses = np.asarray(convolutional.conv(images), np.float64)
    mean, variance = responses.mean((0, 1, 2)), responses.var((0, 1, 2))
    # Flax's momentum of 0.99, from means of 0 and variances of 1; in float32.
    np.testing.assert_allclose(trained.norm.mean[...], 0.01 * mean, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(trained.norm.var[...], 0.99 + 0.01 * variance, rtol=1e-6)
    assert trained.norm.use_running_average


def test_a_module_in_training_mode_is_attacked_and_given_back_in_evaluation_mode(samples):
    module = Convolutional(nnx.Rngs(0))  # as Flax makes it
    trained = training.train(
        module,
        *samples,
        RECIPE,
        jax.random.key(0),
        attack=lambda f, x, y, key: x + 0 * f(x)[:1, :1, None, None],
        devices=ONE,
    )
    assert trained.norm.use_running_average
    assert not module.norm.use_running_average
    np.testing.assert_array_equal(module.norm.mean[...], 0)


def test_samples_that_fill_up_a_batch_count_for_statistics_only(samples):
    """Batches of 12: the second holds 6 new samples and 6 of the first one's."""
    images, labels = samples
    classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 3, 1), num_classes=3)
    seen = []
    recipe = dataclasses.replace(RECIPE, num_epochs=1, batch_size=12, max_learning_rate=1e-9)
    training.train(
        classifier, images, labels, recipe, jax.random.key(0), devices=ONE, on_epoch=lambda *r: seen.append(r[2])
    )
    expected = training.evaluate(classifier, images, labels, devices=ONE)
    np.testing.assert_allclose(seen[0].loss, expected.loss, rtol=1e-6)  # float32
    assert seen[0].accuracy == expected.accuracy


def test_devices_share_every_batch(samples, convolutional):
    recipe = dataclasses.replace(RECIPE, batch_size=8)
    one, eight = (
        training.train(convolutional, *samples, recipe, jax.random.key(3), devices=devices)
        for devices in (ONE, jax.devices())
    )
    # Sums over eight parts, in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), nnx.state(one), nnx.state(eight))
    assert eight.conv.kernel[...].devices() == {jax.devices()[0]}
    found, expected = (training.evaluate(one, *samples, devices=devices) for devices in (jax.devices(), ONE))
    assert found == pytest.approx(expected, rel=1e-6)


def test_going_on_from_a_state_ends_the_same(samples, convolutional):
    images, labels = samples
    states = {}

    def keep(epoch, state, metrics):
        states[epoch] = jax.tree.map(jnp.copy, state)

    arguments = (convolutional, images, labels, RECIPE, jax.random.key(4))
    whole = training.train(*arguments, devices=ONE, on_epoch=keep)
    epochs = []
    resumed = training.train(*arguments, state=states[0], devices=ONE, on_epoch=lambda *r: epochs.append(r[0]))
    assert epochs == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(whole), nnx.state(resumed))


def test_a_state_of_another_network_or_batch_size_is_refused(samples, logistic):
    images, labels = samples

    def go_on(recipe, state):
        training.train(logistic, images, labels, recipe, jax.random.key(0), state=state, devices=ONE)

    mlp = models.create("mlp", jax.random.key(0), image_shape=(2, 3, 1), num_classes=3, num_hidden=(5,))
    with pytest.raises(ValueError, match="the state is of another network than the classifier, or of another kind of"):
        go_on(RECIPE, training.start(mlp, RECIPE, 18))
    state = training.start(logistic, RECIPE, 18)
    seen = state.sums._replace(num_samples=jnp.int32(4))  # after a batch of 4
    with pytest.raises(ValueError, match="1 steps into training and has seen 4 samples in its last epoch, which does"):
        go_on(dataclasses.replace(RECIPE, batch_size=8), state._replace(num_steps=1, sums=seen))
    seen = state.sums._replace(num_samples=jnp.int32(18))  # after an epoch of 5 batches of 4
    with pytest.raises(
        ValueError, match="the state is 5 steps into training and has seen 18 samples in its last epoch"
    ):
        go_on(dataclasses.replace(RECIPE, batch_size=8), state._replace(num_steps=5, sums=seen))


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", ["arrays on the host", "arrays on an accelerator", "a stream"])
@pytest.mark.parametrize("num_steps", [1, 4, 7, 14])
def test_going_on_from_any_step_ends_the_same(kind, num_steps, samples, convolutional, monkeypatch):
    if kind == "arrays on an accelerator":
        monkeypatch.setattr(_train, "_host_steps", functools.partial(_train._device_steps, block_size=1))
    seen, kept = [], []

    def train(**options):
        options = {"devices": ONE, "on_epoch": lambda *found: seen.append((found[0], found[2]))} | options
        if kind == "a stream":
            return training.train_on_stream(convolutional, Stream(*samples), RECIPE, jax.random.key(4), **options)
        return training.train(convolutional, *samples, RECIPE, jax.random.key(4), **options)

    def stop(state):
        if state.num_steps == num_steps:
            kept.append(jax.tree.map(jnp.copy, state))
            raise StopError

    whole, expected = train(), seen.copy()
    seen.clear()
    with pytest.raises(StopError):
        train(on_step=stop)
    resumed = train(state=kept[0])
    assert seen == expected  # each epoch is there once, and their metrics are of all steps
    jax.tree.map(np.testing.assert_array_equal, nnx.state(whole), nnx.state(resumed))


class Stream:
    """The samples in their order, in batches of 4, the last one of which has 2, unless told otherwise."""

    num_samples, batch_size = 18, 4

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def epoch(self, number):
        for first in range(0, 18, self.batch_size):
            yield self.images[first : first + self.batch_size], self.labels[first : first + self.batch_size]


def test_streams_train_as_arrays_do(samples, logistic):
    images, labels = samples
    trained = training.train_on_stream(logistic, Stream(images, labels), RECIPE, jax.random.key(0), devices=ONE)
    expected = numpy_sgd(images, labels, *weights_of(logistic), [np.arange(18)] * 3)
    # float32 over 15 steps
    for found, wanted in zip(weights_of(trained), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    recipe = dataclasses.replace(RECIPE, batch_size=8)
    with pytest.raises(ValueError, match="the stream's batch_size is 4 and the recipe's 8"):
        training.train_on_stream(logistic, Stream(images, labels), recipe, jax.random.key(0), devices=ONE)


def test_the_last_batch_of_a_stream_is_filled_up_with_the_first(samples):
    """As that of arrays: two copies of the last two samples would be no batch of the data's statistics."""
    images, labels = samples

    class Norm(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
            self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.linear(self.norm(images).reshape(len(images), -1))

    recipe = dataclasses.replace(RECIPE, num_epochs=1)
    trained = training.train_on_stream(Norm(), Stream(images, labels), recipe, jax.random.key(0), devices=ONE)
    mean, variance = 0.0, 1.0
    for first in range(0, 18, 4):
        batch = images[np.arange(first, first + 4) % 18]
        mean, variance = (mean + batch.mean()) / 2, (variance + batch.var()) / 2
    np.testing.assert_allclose(trained.norm.mean[...], [mean], rtol=1e-5)
    np.testing.assert_allclose(trained.norm.var[...], [variance], rtol=1e-5)


def test_streams_are_checked_as_arrays_are(samples, logistic):
    images, labels = samples

    def train(images, labels, **settings):
        return training.train_on_stream(
            logistic, Stream(images, labels), RECIPE, jax.random.key(0), devices=ONE, **settings
        )

    with pytest.raises(ValueError, match=r"images must be uint8, or floating point in \[0, 1\], got int64"):
        train((255 * images).astype(int), labels)
    with pytest.raises(ValueError, match="labels must be whole numbers from 0, but the lowest one is -1"):
        train(images, labels - 1)
    with pytest.warns(hmt_jax.PixelRangeWarning, match=r"pixels of 4 of 4 images leave \[0, 1\]"):
        train(255 * images, labels, attack=attacks.PGD(norm="l2", epsilon=0.1, num_steps=1))
    with pytest.raises(ValueError, match="the stream yielded 17 samples in epoch 0, but its num_samples is 18: let"):
        train(images[:17], labels[:17])


@pytest.mark.parametrize("bounds", [[0, 4, 6, 10], [0, 4, 9]])
def test_batches_of_a_stream_have_its_size(samples, logistic, bounds):
    class Uneven(Stream):
        def epoch(self, number):
            for first, last in itertools.pairwise(bounds):
                yield self.images[first:last], self.labels[first:last]

    with pytest.raises(ValueError, match="batch_size is 4, but a batch of epoch 0 has another number of samples"):
        training.train_on_stream(logistic, Uneven(*samples), RECIPE, jax.random.key(0), devices=ONE)


def test_what_is_wrong_with_logits_is_told_in_attacks_too(samples):
    images, _ = samples
    one = models.create("logistic", jax.random.key(0), image_shape=(2, 3, 1), num_classes=1)
    attack = attacks.PGD(norm="l2", epsilon=0.1, num_steps=1)
    with pytest.raises(ValueError, match=r"^classifier has one class only"):
        training.train(one, images, np.zeros(18, int), RECIPE, jax.random.key(0), devices=ONE, attack=attack)


def test_one_step_in_all_gives_a_warning(samples, logistic):
    recipe = training.Recipe(num_epochs=1, batch_size=32)
    with pytest.warns(UserWarning, match="18 samples in batches of 32 make one step in all, whose learning rate is 0"):
        training.train(logistic, *samples, recipe, jax.random.key(0), devices=ONE)


def test_bfloat16_comes_close(samples, convolutional):
    recipe = dataclasses.replace(RECIPE, compute_dtype="bfloat16")
    exact, rounded = (
        training.train(convolutional, *samples, each, jax.random.key(0), devices=ONE) for each in (RECIPE, recipe)
    )
    start = np.asarray(convolutional.conv.kernel[...])
    moved, difference = exact.conv.kernel[...] - start, rounded.conv.kernel[...] - exact.conv.kernel[...]
    assert rounded.conv.kernel[...].dtype == rounded.norm.mean[...].dtype == jnp.float32
    # bfloat16 has 8 bits; and it was used, for float32 would differ by 1e-6 at most.
    assert 1e-4 < np.linalg.norm(difference) / np.linalg.norm(moved) < 0.1


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_nothing_is_promoted_implicitly(samples, compute_dtype):
    images, labels = samples
    recipe = dataclasses.replace(RECIPE, num_epochs=1, compute_dtype=compute_dtype, augment=training.crop_and_mirror)
    attack = attacks.PGD(norm="l2", epsilon=0.1, num_steps=1, random_start=False)
    module = Convolutional(nnx.Rngs(0), rate=0.5)
    with jax.numpy_dtype_promotion("strict"):
        trained = training.train(
            module, (255 * images).astype(np.uint8), labels, recipe, jax.random.key(0), attack=attack, devices=ONE
        )
        assert np.isfinite(training.evaluate(trained, images, labels, devices=ONE).loss)


def test_batch_norm_hands_on_bfloat16(samples):
    dtypes = []

    class Recorded(Convolutional):
        def __call__(self, images):
            normalised = self.norm(self.conv(images))
            if images.dtype == jnp.bfloat16:  # in another type, its logits are counted
                dtypes.append(normalised.dtype)
            return normalised.mean((1, 2)) ** 2

    recipe = dataclasses.replace(RECIPE, compute_dtype="bfloat16")
    module = Recorded(nnx.Rngs(0))
    for attack in (None, attacks.PGD(norm="l2", epsilon=0.1, num_steps=1)):
        trained = training.train(module, *samples, recipe, jax.random.key(0), attack=attack, devices=ONE)
    assert len(dtypes) >= 3  # in training mode twice, and in evaluation mode for the attack
    assert set(dtypes) == {jnp.dtype("bfloat16")}
    assert trained.norm.mean[...].dtype == jnp.float32
    # What is trained computes as it did before.
    assert Recorded(nnx.Rngs(0)).norm.promote_dtype is trained.norm.promote_dtype


def test_dropout_is_drawn_anew_in_every_step(samples):
    module = Convolutional(nnx.Rngs(0), rate=0.5)
    module.eval()
    first, again, other = (
        training.train(module, *samples, RECIPE, jax.random.key(seed), devices=ONE) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.conv.kernel[...], again.conv.kernel[...])
    assert (first.conv.kernel[...] != other.conv.kernel[...]).any()
    assert first.dropout.deterministic


class Own(nnx.Variable):
    """A kind of variable that Flax does not know."""


class Noting(nnx.Module):
    """Logistic regression that counts its calls, sums up the means of its images, and notes what its streams draw."""

    def __init__(self, count=0.0):
        self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
        self.rngs = nnx.Rngs(noise=1, other=1)
        self.dropout = nnx.Dropout(0.5, rng_collection="other", rngs=self.rngs)
        self.count, self.total = Own(jnp.asarray(count)), Own(jnp.zeros(()))
        self.drawn = Own(jnp.zeros((15, 3)))

    def __call__(self, images):
        numbers = [jax.random.uniform(stream()) for stream in (self.rngs.noise, self.rngs.other, self.dropout.rngs)]
        step = self.count[...].astype(int) % 15
        self.drawn[...] = self.drawn[...].at[step].set(jnp.stack(numbers))
        self.count[...] += 1
        self.total[...] += images.mean()
        return self.linear(images.reshape(len(images), -1))


def test_every_random_stream_of_a_module_is_new_in_every_step(samples):
    states = {}

    def train(seed, **settings):
        trained = training.train(Noting(), *samples, RECIPE, jax.random.key(seed), devices=ONE, **settings)
        return np.asarray(trained.drawn[...])

    drawn = train(0, on_epoch=lambda epoch, state, _: states.update({epoch: jax.tree.map(jnp.copy, state)}))
    assert len(np.unique(drawn)) == 3 * 15
    np.testing.assert_array_equal(train(0), drawn)
    np.testing.assert_array_equal(train(0, state=states[1]), drawn)
    assert not np.isin(train(1), drawn).any()


def test_attention_drops_others_in_every_step(samples):
    class Attention(nnx.Module):
        def __init__(self):
            self.attention = nnx.MultiHeadAttention(1, 6, dropout_rate=0.5, decode=False, rngs=nnx.Rngs(0))
            self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
            self.seen, self.count = Own(jnp.zeros(15)), Own(jnp.zeros((), int))

        def __call__(self, images):
            mixed = self.attention(jnp.broadcast_to(jnp.sin(jnp.arange(24.0)).reshape(4, 6), (1, 4, 6)))
            self.seen[...] = self.seen[...].at[self.count[...]].set(mixed.sum())
            self.count[...] += 1
            return self.linear(images.reshape(len(images), -1))

    recipe = dataclasses.replace(RECIPE, max_learning_rate=1e-9)
    trained = training.train(Attention(), *samples, recipe, jax.random.key(0), devices=ONE)
    assert len(np.unique(trained.seen[...])) == 15


def test_variables_of_a_modules_own_are_carried_from_step_to_step(samples):
    """Also if the network computes in bfloat16, where 256 + 1 is 256."""
    images, labels = samples
    recipe = dataclasses.replace(RECIPE, compute_dtype="bfloat16")
    stream = Stream(images, labels)
    trained = training.train_on_stream(Noting(256.0), stream, recipe, jax.random.key(0), devices=ONE)
    assert trained.count[...] == 256 + 15
    assert trained.count[...].dtype == trained.drawn[...].dtype == jnp.float32
    means = [images[np.arange(first, first + 4) % 18].mean() for first in range(0, 18, 4)]
    np.testing.assert_allclose(trained.total[...], 3 * np.sum(means), rtol=2e-2)  # of pixels in bfloat16


def test_what_a_module_sows_is_no_part_of_training(samples):
    class Sowing(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

        def __call__(self, images):
            with warnings.catch_warnings(action="ignore"):  # Flax would have nnx.capture around it
                self.sow(nnx.Intermediate, "mean", images.mean())
            return self.linear(images.reshape(len(images), -1))

    trained = training.train(Sowing(), *samples, RECIPE, jax.random.key(0), devices=ONE)
    assert not nnx.state(trained, nnx.Intermediate)
    assert (trained.linear.kernel[...] != Sowing().linear.kernel[...]).all()


def change_parameter(module, images):
    module.linear.bias[...] = module.linear.bias[...] + 1


def make_variable(module, images):
    module.cache = Own(images)


def grow(module, images):
    module.drawn.set_value(jnp.zeros(7))


def become_whole(module, images):
    module.count.set_value(jnp.zeros((), int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            change_parameter,
            r"linear\.bias \(Param\) from step to step: it is a parameter, which a call",
        ),
        (
            make_variable,
            r"cache \(Own\) from step to step: it is made by a call of the classifier: make",
        ),
        (
            grow,
            r"drawn \(Own\) from step to step: it has another shape or type after a call of the classifier",
        ),
        (become_whole, r"count \(Own\) from step to step: it has another shape or type after a call"),
    ],
)
def test_variables_that_can_not_be_carried_are_named(samples, change, message):
    class Changing(Noting):
        def __call__(self, images):
            change(self, images)
            return self.linear(images.reshape(len(images), -1))

    with pytest.raises(ValueError, match=f"^training can't carry {message}"):
        training.train(Changing(), *samples, RECIPE, jax.random.key(0), devices=ONE)


def test_attacks_change_what_is_trained_on(samples, logistic):
    """An attack by plain arithmetic, against training on images so changed beforehand."""
    images, labels = samples
    dimmed = training.train(logistic, images / 2, labels, RECIPE, jax.random.key(0), devices=ONE)
    attacked = training.train(
        logistic, images, labels, RECIPE, jax.random.key(0), attack=lambda f, x, y, key: x / 2, devices=ONE
    )
    for found, expected in zip(weights_of(attacked), weights_of(dimmed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32, in another program


@ONE_STEP
def test_attacks_see_the_classifier_in_evaluation_mode(samples, convolutional):
    seen = []

    def attack(classifier, images, labels, key):
        jax.debug.callback(lambda logits, images: seen.append((logits, images)), classifier(images), images)
        return images

    recipe = dataclasses.replace(RECIPE, num_epochs=1, batch_size=18)
    training.train(convolutional, *samples, recipe, jax.random.key(0), attack=attack, devices=ONE)
    jax.effects_barrier()
    ((logits, images),) = seen
    np.testing.assert_allclose(logits, convolutional(images), rtol=1e-5, atol=1e-6)


def test_augmented_images_are_moved_and_mirrored():
    images = np.random.default_rng(0).uniform(0.1, 1, (64, 6, 7, 2)).astype(np.float32)
    augmented = np.asarray(training.crop_and_mirror(jax.random.key(0), jnp.asarray(images)))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    found = set()
    for n in range(64):
        crops = {
            (row, column, mirrored): padded[n, row : row + 6, column : column + 7][:, :: -1 if mirrored else 1]
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
        }
        matches = [place for place, crop in crops.items() if np.array_equal(crop, augmented[n])]
        assert matches
        found.update(matches)
    assert {mirrored for _, _, mirrored in found} == {False, True}
    assert {row for row, _, _ in found} == {column for _, column, _ in found} == set(range(9))


def test_augmentation_is_part_of_the_step(samples, logistic):
    images, labels = samples
    recipe = dataclasses.replace(RECIPE, augment=lambda key, batch: 1 - batch)
    found = training.train(logistic, images, labels, recipe, jax.random.key(0), devices=ONE)
    expected = training.train(logistic, 1 - images, labels, RECIPE, jax.random.key(0), devices=ONE)
    np.testing.assert_allclose(weights_of(found)[0], weights_of(expected)[0], rtol=1e-5, atol=1e-6)  # float32


def test_an_augmentation_is_called_as_it_is_now(samples, logistic):
    images, labels = samples
    scale = 1.0

    def scaled(key, batch):
        return scale * batch

    recipe = dataclasses.replace(RECIPE, num_epochs=1, augment=scaled)
    for scale in (1.0, 0.5):
        found = training.train(logistic, images, labels, recipe, jax.random.key(0), devices=ONE)
        plain = dataclasses.replace(recipe, augment=None)
        expected = training.train(logistic, scale * images, labels, plain, jax.random.key(0), devices=ONE)
        np.testing.assert_allclose(weights_of(found)[0], weights_of(expected)[0], rtol=1e-5, atol=1e-6)  # float32


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


@ONE_STEP
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
    first, second, other = (
        training.train(logistic, *samples, RECIPE, jax.random.key(seed), devices=ONE) for seed in (1, 1, 2)
    )
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

    training.train(Counted(nnx.Rngs(0)), *samples, RECIPE, jax.random.key(0), devices=ONE)
    after_first = num_traces
    training.train(Counted(nnx.Rngs(1)), *samples, RECIPE, jax.random.key(1), devices=ONE)
    assert num_traces == after_first


@pytest.mark.slow
@pytest.mark.parametrize("devices", [ONE, jax.devices()], ids=["one", "all"])
def test_a_step_is_compiled_once(samples, logistic, devices):
    """Several epochs, each of several steps."""
    compiled = []

    def listener(event, _, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    recipe = dataclasses.replace(RECIPE, batch_size=8, max_learning_rate=0.3)  # of its own, so that nothing is compiled
    stream = Stream(*samples)
    stream.batch_size = 8
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        training.train(logistic, *samples, recipe, jax.random.key(0), devices=devices)
        training.train_on_stream(logistic, stream, recipe, jax.random.key(0), devices=devices)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert [name for name in compiled if "step" in name] == ["jit(step_at)", "jit(_step)"]


def test_bad_recipes():
    with pytest.raises(ValueError, match="num_epochs must be positive, got 0"):
        training.Recipe(num_epochs=0)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number, got 64\.0"):
        training.Recipe(batch_size=64.0)
    with pytest.raises(ValueError, match=r"weight_decay must not be negative, got -0\.1"):
        training.Recipe(weight_decay=-0.1)
    with pytest.raises(ValueError, match="max_learning_rate must be positive, got nan"):
        training.Recipe(max_learning_rate=float("nan"))
    with pytest.raises(ValueError, match="compute_dtype must be 'float32' or 'bfloat16', got 'float16'"):
        training.Recipe(compute_dtype="float16")
    for wrong in ([0.1], "0.1", None, 1j):
        with pytest.raises(ValueError, match=r"^momentum must be a single number, known when compiling, got"):
            training.Recipe(momentum=wrong)
    with pytest.raises(
        ValueError, match=r"augment must be a function of \(key, images\), such as crop_and_mirror, got"
    ):
        training.Recipe(augment=True)


def test_a_network_of_nans_is_never_right(samples):
    images, labels = samples
    assert (labels == 0).any()
    metrics = training.evaluate(lambda images: jnp.full((len(images), 10), jnp.nan), images, labels)
    assert metrics.accuracy == 0


def test_bad_samples(samples, logistic):
    images, labels = samples
    for wrong in ((images, labels[:-1]), (images[..., 0], labels), (images[:0], labels[:0])):
        with pytest.raises(
            ValueError, match=r"images must have shape \(N, height, width, channels\) and labels \(N,\)"
        ):
            training.train(logistic, *wrong, RECIPE, jax.random.key(0), devices=ONE)
    for wrong, message in [
        ((images.astype(int), labels), r"images must be uint8, or floating point in \[0, 1\], got int64; convert"),
        (
            (images, np.eye(3)[labels]),
            r"labels must have shape \(N,\), got \(18, 3\); convert one-hot labels with labels",
        ),
        ((images, labels[:, None]), r"labels must have shape \(N,\), got \(18, 1\); take labels\[:, 0\]$"),
        ((images, labels[0]), r"labels must have shape \(N,\), got \(\); pass one whole number for each image$"),
        ((images, labels - 1), "labels must be whole numbers from 0, but the lowest one is -1"),
        (
            (images, labels / 2),
            r"labels must be whole numbers from 0, got float64; convert them with labels\.astype",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            training.evaluate(logistic, *wrong)


def test_labels_that_are_no_class_are_told(samples, logistic):
    images, labels = samples
    with pytest.raises(
        ValueError, match="labels must be whole numbers from 0 to 2, since the classifier has 3 logits, but"
    ):
        training.evaluate(logistic, images, labels + 1)
    message = "but the greatest one is 3: number the classes from 0, with labels - 1 if they count from 1$"
    arguments = RECIPE, jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        training.train(logistic, images, labels + 1, *arguments, devices=ONE)
    with pytest.raises(ValueError, match=message):
        training.train_on_stream(logistic, Stream(images, labels + 1), *arguments, devices=ONE)
    with pytest.raises(ValueError, match="labels must be whole numbers in int32, but the greatest one is 4294967298"):
        training.evaluate(logistic, images, np.where(labels == 2, 2**32 + 2, labels))


def test_images_of_another_shape_are_told(samples, logistic):
    images, labels = samples
    message = r"^classifier can't be applied to images of shape \(N, 2, 2, 1\): "
    with pytest.raises(ValueError, match=message):
        training.evaluate(logistic, images[:, :, :2], labels, devices=ONE)
    with pytest.raises(ValueError, match=message):
        training.train(logistic, images[:, :, :2], labels, RECIPE, jax.random.key(0), devices=ONE)


def test_images_that_an_attack_can_not_move_give_a_warning(samples, logistic):
    images, labels = samples
    attack = attacks.PGD(norm="l2", epsilon=0.1, num_steps=1)
    with pytest.warns(hmt_jax.PixelRangeWarning, match="or an attack with domain='unbounded'") as warned:
        training.train(logistic, images - 0.5, labels, RECIPE, jax.random.key(0), attack=attack, devices=ONE)
    assert len(warned) == 1
    assert warned[0].filename == __file__


@pytest.mark.parametrize("epoch", [0, 2])
def test_loss_that_is_not_finite_stops_training_at_its_step(samples, logistic, epoch):
    """The stream breaks in the third batch of an epoch of five."""

    class Broken(Stream):
        def epoch(self, number):
            for step, (images, labels) in enumerate(super().epoch(number)):
                yield np.where((number, step) == (epoch, 2), np.nan, images), labels

    seen = []
    with pytest.raises(FloatingPointError, match=rf"in step {5 * epoch + 2}, in epoch {epoch}: lower max_learning"):
        training.train_on_stream(
            logistic, Broken(*samples), RECIPE, jax.random.key(0), devices=ONE, on_epoch=lambda *r: seen.append(r[0])
        )
    assert seen == list(range(epoch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": 5}, r"key must be a random key, got 5: make one with jax\.random\.key\(5\)"),
        (
            {"key": np.arange(2)},
            r"key must be a random key, got array\(\[0, 1\]\): make one with jax\.random\.key\(0\)",
        ),
        (
            {"key": jax.random.split(jax.random.key(0))},
            r"key must be one random key, got an array of them, \(2,\): choose",
        ),
        ({"recipe": 0.1}, r"recipe must be a hmt_jax\.training\.Recipe, got 0\.1"),
        ({"on_epoch": True}, r"on_epoch must be a function of an epoch's number, .*, or None, got True"),
        (
            {"attack": functools.partial(attacks.PGD, norm="l2")},
            r"attack must be an attack, such as hmt_jax\.attacks\.PGD\(norm='l2', epsilon=1\.0\), or .*got functools",
        ),
        ({"attack": attacks.PGD}, r"PGD\(norm='l2', epsilon=1\.0\), or a function of .*got <class '.*PGD'>"),
        ({"attack": "pgd"}, r"PGD\(norm='l2', epsilon=1\.0\), or a function of .*got 'pgd'"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_before_anything_is_computed(samples, logistic, settings, message):
    arguments = {"recipe": RECIPE, "key": jax.random.key(0), "devices": ONE, **settings}
    with pytest.raises((TypeError, ValueError), match=message):
        training.train(logistic, *samples, **arguments)
    with pytest.raises((TypeError, ValueError), match=message):
        training.train_on_stream(logistic, Stream(*samples), **arguments)


def test_arrays_are_taken_in_any_byte_order_and_length(samples, logistic):
    images, labels = samples
    expected = training.evaluate(logistic, images, labels, devices=ONE)
    for kind in (">f4", "<f4", np.longdouble):
        assert training.evaluate(logistic, images.astype(kind), labels.astype(">i2"), devices=ONE) == expected
    unmasked = np.ma.array(images, mask=False)
    assert training.evaluate(logistic, unmasked, np.ma.array(labels), devices=ONE) == expected
    masked, objects = np.ma.masked_greater(images, 0.9), np.empty(18, object)
    objects[:] = list(images)
    for wrong, message in (
        (
            masked,
            rf"images has {np.sum(images > 0.9)} masked entries, which have no value: .* images\.filled\(value\)$",
        ),
        (
            objects,
            r"images must be an array of numbers, got object: make it of .* such as np\.stack\(list\(images\)\)$",
        ),
        ([images[0], images[1, :1]], "images must be one array of numbers: "),
    ):
        with pytest.raises(ValueError, match=message):
            training.train(logistic, wrong, labels, RECIPE, jax.random.key(0), devices=ONE)


def test_attacks_in_training_return_an_image_for_each(samples, logistic):
    for attack, message in (
        (
            lambda f, x, y, key: x[:1],
            r"attack must return .* of shape \(4, 2, 3, 1\), got float32 \(1, 2, 3, 1\):",
        ),
        (lambda f, x, y, key: x > 0.5, r"of shape \(4, 2, 3, 1\), got bool \(4, 2, 3, 1\): return one image for each"),
        (lambda f, x, y, key: (x, y), "got a tuple: return one image for each that is passed to it, and nothing else"),
    ):
        with pytest.raises(ValueError, match=message):
            training.train(logistic, *samples, RECIPE, jax.random.key(0), attack=attack, devices=ONE)


def test_batches_that_devices_cannot_share(samples, logistic):
    with pytest.raises(ValueError, match="batch_size 4 is not divisible by the number of devices, 8"):
        training.train(logistic, *samples, RECIPE, jax.random.key(0), devices=jax.local_devices())


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "expected"), [(128, 2), (9, 3), (7, 1), (1, 1)])
def test_training_takes_the_devices_that_can_share_a_batch(batch_size, expected, samples, logistic, monkeypatch):
    devices = jax.local_devices()[:3]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    recipe, used = training.Recipe(num_epochs=2, batch_size=batch_size), []
    keep = lambda _, state, __: used.append(state.num_steps.devices())  # noqa: E731
    training.train(logistic, *samples, recipe, jax.random.key(0), on_epoch=keep)
    assert used == [set(devices[:expected])] * 2


def test_only_modules_are_trained(samples, logistic):
    partial = jax.tree_util.Partial(lambda images: images)
    with pytest.raises(TypeError, match=r"training changes the parameters of a Flax NNX module, .*Partial"):
        training.train(partial, *samples, RECIPE, jax.random.key(0), devices=ONE)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_a_sample(samples, logistic, batch_size):
    message = f"batch_size must be at least 1, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        training.evaluate(logistic, *samples, batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        attacks.evaluate(
            logistic, *samples, attacks.PGD(norm="l2", epsilon=1.0), jax.random.key(0), batch_size=batch_size
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_the_loss_of_half_precision_logits_is_summed_in_full(dtype):
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(3000, 1, 1, 3)).astype(np.float32), rng.integers(0, 3, 3000)

    def classifier(images):
        return (300 * images.reshape(-1, 3)).astype(dtype)

    logits = np.asarray(classifier(jnp.asarray(images)), np.float64)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(3000), labels])
    found = training.evaluate(classifier, images, labels)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)  # sums of 3,000 numbers in float32


def test_a_stream_of_several_processes_is_refused(samples, logistic):
    images, labels = samples
    source = list(zip(images, labels, strict=True))
    stream = data.Loader(source, 4, seed=0, num_workers=0, shuffle=False, process_index=0, process_count=2)
    with pytest.raises(ValueError, match="the stream shares its batches between 2 processes"):
        training.train_on_stream(logistic, stream, RECIPE, jax.random.key(0), devices=ONE)


def test_every_step_has_random_numbers_of_its_own(samples, logistic):
    seen = []

    def note(key):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))

    def augment(key, images):
        note(key)
        return images

    def attack(classifier, images, labels, key):
        note(key)
        return images

    recipe = dataclasses.replace(RECIPE, num_epochs=3, batch_size=4, augment=augment)
    training.train(logistic, *samples, recipe, jax.random.key(0), attack=attack, devices=ONE)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 2 * 3 * 5


def test_a_gradient_that_is_not_finite_stops_training_at_its_step(samples):
    """The loss of that step is finite."""

    class Rooted(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.linear(images.reshape(len(images), -1)) + jnp.sqrt(0 * self.linear.kernel[...].sum())

    with pytest.raises(FloatingPointError, match="in step 0, in epoch 0"):
        training.train(Rooted(), *samples, RECIPE, jax.random.key(0), devices=ONE)


def test_the_recipe_of_the_paper_is_the_default():
    expected = {"num_epochs": 30, "batch_size": 128, "max_learning_rate": 0.21, "momentum": 0.9, "weight_decay": 5e-4}
    recipe = training.Recipe()
    assert {name: getattr(recipe, name) for name in expected} == expected
