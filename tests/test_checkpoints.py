"""Checkpoints: what is kept, and what failures and kills leave."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hmt_jax import attacks, checkpoints, models, training
from hmt_jax.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = training.Recipe(num_epochs=2)


class Normed(nnx.Module):
    """A linear layer and batch norm."""

    def __init__(self):
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))


def state_of(network, num_classes=3):
    classifier = models.create(network, jax.random.key(0), image_shape=(8, 8, 1), num_classes=num_classes)
    return training.start(classifier, RECIPE, num_samples=10)


@pytest.fixture(scope="module")
def state():
    """A state whose arrays are all different, batch-norm statistics included."""
    blank = training.start(Normed(), RECIPE, num_samples=10)
    leaves, structure = jax.tree.flatten(blank)
    return jax.tree.unflatten(
        structure, [jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape) + i for i, leaf in enumerate(leaves)]
    )


def small_state(value):
    blank = state_of("logistic")
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), blank)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_state_comes_back_as_it_was(tmp_path, state):
    history = [{"epoch": 0, "loss": 0.1 + 0.2, "note": None}]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, score=0.5, history=history)
    with Checkpoints(tmp_path) as checkpoints:
        found, found_history = checkpoints.restore(training.start(Normed(), RECIPE, num_samples=10))
    assert_equal(found, state)
    assert found_history == history
    assert found.structure == state.structure
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


class Dropping(nnx.Module):
    """Dropout with random keys of its own, as NNX has it."""

    def __init__(self):
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))


def test_random_keys_come_back_as_they_were(tmp_path):
    state = training.start(Dropping(), RECIPE, num_samples=10)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, score=0.5)
        found, _ = checkpoints.restore(training.start(Dropping(), RECIPE, num_samples=10))
    assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(state))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype
        is_key = jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*(jax.random.key_data(leaf) if is_key else leaf for leaf in (ours, theirs)))


def test_the_last_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_epoch is checkpoints.best_epoch is None
        for epoch, score in enumerate([0.5, 0.9, 0.7, 0.8]):
            checkpoints.save(epoch, small_state(epoch), score=score)
        assert (checkpoints.last_epoch, checkpoints.best_epoch) == (3, 1)
        assert_equal(checkpoints.restore(small_state(-1))[0], small_state(3))
        assert_equal(checkpoints.restore(small_state(-1), 1)[0], small_state(1))
        with pytest.raises(ValueError, match=r"no checkpoint of epoch 0 in .*; it has 1, 2, 3"):
            checkpoints.restore(small_state(-1), 0)


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, small_state(0), score=0.5)
        with pytest.raises(ValueError, match=r"not of this network .*linear\.bias\.value is \(3,\) there, \(4,\) here"):
            checkpoints.restore(state_of("logistic", num_classes=4))
        with pytest.raises(ValueError, match=r"linear\.bias\.value is \(3,\) there, missing here.* is missing there"):
            checkpoints.restore(state_of("mlp"))
    with Checkpoints(tmp_path / "empty") as checkpoints, pytest.raises(ValueError, match="no checkpoint of epoch None"):
        checkpoints.restore(small_state(0))


def test_a_full_disk_leaves_what_was_saved(tmp_path):
    """Files can't grow beyond 100 bytes, which is how a full disk looks to a process, but for the error's number."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, small_state(0), score=0.5)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(OSError, match=f"^the checkpoint {tmp_path}/1 can't be written .*is space"):
                checkpoints.save(1, small_state(1), score=0.9)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_epoch == 0
        assert_equal(checkpoints.restore(small_state(-1))[0], small_state(0))
        checkpoints.save(1, small_state(1), score=0.9)
        assert_equal(checkpoints.restore(small_state(-1))[0], small_state(1))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the checkpoints of epochs 1 and 2."""
    path = tmp_path_factory.mktemp("kept")
    with Checkpoints(path) as checkpoints:
        for epoch in range(3):
            checkpoints.save(epoch, small_state(epoch), score=epoch, history=[{"epoch": epoch}])
    return path


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


DAMAGES = [
    ("state/ocdbt.process_0/d/*", lambda file: flip(file, 0.5)),
    ("state/_METADATA", lambda file: file.write_bytes(b"\x82" + file.read_bytes())),
    ("state/_METADATA", pathlib.Path.unlink),
    ("metrics/metrics", lambda file: file.write_text("{")),
    ("metrics/metrics", lambda file: file.write_text(file.read_text().replace("2", "0"))),
    ("files.sha256", lambda file: flip(file, 0.2)),
    (".", lambda step: (step / "state" / "more").write_text("")),
]


@pytest.mark.parametrize(("pattern", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(kept, tmp_path, pattern, damage):
    path = tmp_path / "kept"
    shutil.copytree(kept, path)
    damage(max((path / "2").glob(pattern), key=lambda file: file.stat().st_size) if pattern != "." else path / "2")
    with Checkpoints(path) as checkpoints:
        assert checkpoints.damaged == {2: path / "damaged-2"}
        assert checkpoints.last_epoch == checkpoints.best_epoch == 1
        state, history = checkpoints.restore(small_state(-1))
        assert_equal(state, small_state(1))
        assert history == [{"epoch": 1}]
        checkpoints.save(2, small_state(5), score=5)
    assert (path / "damaged-2").is_dir()


def test_no_sound_checkpoint_is_as_none(kept, tmp_path):
    path = tmp_path / "kept"
    shutil.copytree(kept, path)
    (path / "damaged-2").mkdir()  # of an earlier time
    for epoch in ("1", "2"):
        flip(path / epoch / "history" / "metadata", 0.5)
    with Checkpoints(path) as checkpoints:
        assert checkpoints.damaged == {1: path / "damaged-1", 2: path / "damaged-2-2"}
        assert checkpoints.last_epoch is checkpoints.best_epoch is None
        checkpoints.save(0, small_state(0), score=0)


def test_sound_checkpoints_stay_where_they_are(kept, tmp_path):
    path = tmp_path / "kept"
    shutil.copytree(kept, path)
    (path / "2" / "files.sha256").unlink()  # a process was killed before it wrote this
    with Checkpoints(path) as checkpoints:
        assert not checkpoints.damaged
        assert_equal(checkpoints.restore(small_state(-1))[0], small_state(2))


def test_checksums_are_those_of_the_files(kept):
    lines = dict(reversed(line.split("  ")) for line in (kept / "2" / "files.sha256").read_text().splitlines())
    files = [file for file in (kept / "2").rglob("*") if file.is_file() and file.name != "files.sha256"]
    assert lines == {
        file.relative_to(kept / "2").as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_a_checkpoint_that_cannot_be_read_is_named(kept, tmp_path):
    path = tmp_path / "kept"
    shutil.copytree(kept, path)
    (path / "2" / "files.sha256").unlink()
    (path / "2" / "state" / "_METADATA").write_bytes(b"\x82")
    expected = f"the checkpoint {path / '2'} can't be read .*: move it away, to go on from the one before it"
    with Checkpoints(path) as checkpoints, pytest.raises(ValueError, match=expected):
        checkpoints.restore(small_state(-1))
    (path / "2" / "metrics" / "metrics").write_text('{"scor": 2}')
    with pytest.raises(ValueError, match=f"scores of the checkpoints in {path} can't be read .*: move away the one"):
        Checkpoints(path)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path):
    settings = [
        "--network",
        "logistic",
        "--num-epochs",
        "12",
        "--batch-size",
        "32",
        "--num-images",
        "2",
        "--measure-every",
        "6",
    ]

    def start(path):
        command = [sys.executable, "-m", "experiments", "run", "digits", *settings]
        command += ["--folder", str(path), "--cache-dir", str(tmp_path / "xla")]
        environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as for what the tests compile themselves
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def finish(process):
        _, errors = process.communicate()
        assert process.returncode == 0, errors

    finish(start(tmp_path / "alone"))
    killed = tmp_path / "killed"

    def entries(folder):
        return {entry.name for entry in (killed / folder).iterdir()} if (killed / folder).exists() else set()

    def whole():
        return {name for name in entries("checkpoints") if name.isdecimal()}

    # While the first checkpoint is written, while the epoch after another one is trained or saved, and when margins
    # have been measured in the middle of training. Each waits for what is new, so that the run gets on between them.
    part_of_an_epoch = random.Random(0).uniform(0, 0.2)
    for found, delay in (
        (lambda: entries("checkpoints"), 0),
        (whole, part_of_an_epoch),
        (lambda: entries("monitored"), 0),
    ):
        before = found()
        process = start(killed)
        while not found() - before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    assert not (killed / "checkpoint.safetensors").exists()
    assert any((killed / "checkpoints").iterdir())
    finish(start(killed))

    for file in ("checkpoint.safetensors", "best.safetensors"):
        expected, found = (models.load(path / file) for path in (tmp_path / "alone", killed))
        jax.tree.map(
            np.testing.assert_array_equal, *map(jax.tree.leaves, map(models.to_torch, (expected[0], found[0])))
        )
    expected, found = (json.loads((path / "history.json").read_text()) for path in (tmp_path / "alone", killed))
    for entry in (*expected, *found):
        entry.pop("seconds")
    assert found == expected


@pytest.mark.parametrize("epoch", [2, 3])
def test_an_epoch_that_is_not_after_the_last_one_is_refused(tmp_path, epoch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, small_state(1.0), score=0.5, history=["first"])
        with pytest.raises(ValueError, match=f"epoch {epoch} is not after 3, the last one saved in {tmp_path}: go on"):
            checkpoints.save(epoch, small_state(2.0), score=0.9, history=["lost"])
        assert checkpoints.restore(small_state(0.0))[1] == ["first"]


def test_a_score_that_is_no_number_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, small_state(1.0), score=0.5)
        with pytest.raises(ValueError, match="score must be a number, and the highest is the best, got nan"):
            checkpoints.save(1, small_state(2.0), score=float("nan"))
        assert checkpoints.best_epoch == 0


IMAGES, LABELS = np.random.default_rng(0).uniform(size=(12, 8, 8, 1)).astype(np.float32), np.arange(12) % 3
SHORT = training.Recipe(num_epochs=3, batch_size=4)


def train_in(path, *, images=IMAGES, recipe=SHORT, seed_of_key=1, attack=None, on_epoch=None, should_stop=None, **run):
    classifier = models.create("logistic", jax.random.key(0), image_shape=(8, 8, 1), num_classes=3)
    tested = {"test_images": IMAGES[:5], "test_labels": LABELS[:5]}
    options = {**tested, "run": run, "attack": attack, "on_epoch": on_epoch, "should_stop": should_stop}
    return checkpoints.train(path, classifier, images, LABELS, recipe, jax.random.key(seed_of_key), **options)


def stop_after(number):
    """Stops a training before its checkpoint of that epoch is written."""

    def on_epoch(classifier, history):
        if len(history) == number:
            raise KeyboardInterrupt

    return on_epoch


def test_a_training_that_was_stopped_ends_as_one_that_keeps_nothing(tmp_path):
    metrics, states = [], []
    classifier = models.create("logistic", jax.random.key(0), image_shape=(8, 8, 1), num_classes=3)
    expected = training.train(
        classifier, IMAGES, LABELS, SHORT, jax.random.key(1), on_epoch=lambda *found: metrics.append(found[2])
    )
    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path, on_epoch=stop_after(2), sides=(8, 8))
    found = train_in(tmp_path, on_epoch=lambda _, history: states.append(len(history)), sides=(8, 8))
    assert states == [2, 3]
    assert_equal(nnx.state(found.last), nnx.state(expected))
    assert [entry["epoch"] for entry in found.history] == [0, 1, 2]
    for entry, (loss, accuracy) in zip(found.history, metrics, strict=True):
        assert (entry["train_loss"], entry["train_accuracy"]) == (loss, accuracy)
    tested = training.evaluate(expected, IMAGES[:5], LABELS[:5])
    assert (found.history[-1]["test_loss"], found.history[-1]["test_accuracy"]) == tested
    seconds = [entry["seconds"] for entry in found.history]
    assert seconds == sorted(seconds)


def at_call(number):
    """Stops a training at that call, counted from 0."""
    calls = itertools.count()
    return lambda: next(calls) == number


def test_a_training_that_is_told_to_stop_keeps_its_step_and_ends_the_same(tmp_path):
    expected = train_in(tmp_path / "whole", seed=0)
    folder = tmp_path / "stopped"
    # Steps 0, then 2, 3, 4 and 7 of 9, each counted from the last stop.
    for call, num_steps, is_within in [
        (0, 0, False),
        (2, 2, True),
        (1, 3, False),
        (1, 4, True),
        (0, 4, True),
        (3, 7, True),
    ]:
        with pytest.raises(
            checkpoints.PreemptedError, match=f"^training stopped after step {num_steps}, kept in {folder}:"
        ):
            train_in(folder, should_stop=at_call(call), seed=0)
        assert (folder / "unfinished").exists() == is_within
    found = train_in(folder, should_stop=lambda: False, seed=0)
    assert not (folder / "unfinished").exists()
    assert_equal(nnx.state(found.last), nnx.state(expected.last))
    assert_equal(nnx.state(found.best), nnx.state(expected.best))
    without_time = [[entry | {"seconds": 0} for entry in each.history] for each in (found, expected)]
    assert without_time[0] == without_time[1]
    seconds = [entry["seconds"] for entry in found.history]
    assert seconds == sorted(seconds)


def test_an_unfinished_epoch_that_is_damaged_or_of_another_run(tmp_path):
    expected = train_in(tmp_path / "whole", seed=0)
    with pytest.raises(checkpoints.PreemptedError):
        train_in(tmp_path, should_stop=at_call(4), seed=0)
    (tmp_path / "0").rename(tmp_path / "away")
    with pytest.raises(checkpoints.PreemptedError, match=r"^training stopped after step 2,"):
        train_in(tmp_path, should_stop=at_call(2), seed=0)  # step 4 is not gone on from: the epoch before is missing
    found = train_in(tmp_path, seed=0)
    assert_equal(nnx.state(found.last), nnx.state(expected.last))
    folder = tmp_path / "other"
    with pytest.raises(checkpoints.PreemptedError):
        train_in(folder, should_stop=at_call(2), seed=0)
    with pytest.raises(
        ValueError, match=rf"^{folder}/unfinished belongs to another run \(seed is 0 there, 7 here\): put"
    ):
        train_in(folder, seed=7)
    (folder / "unfinished" / "2" / "metrics" / "metrics").write_bytes(b"{}")
    with pytest.warns(
        UserWarning, match=f"^the unfinished epoch in {folder}/unfinished/damaged-2 is damaged: training"
    ):
        found = train_in(folder, seed=0)
    assert_equal(nnx.state(found.last), nnx.state(expected.last))


def copy_of(classifier):
    return jax.tree.map(np.array, nnx.state(classifier))


def test_the_best_classifier_is_that_of_the_greatest_test_accuracy(tmp_path, monkeypatch):
    scores, seen = iter([0.5, 0.9, 0.7]), []
    monkeypatch.setattr(training, "evaluate", lambda *_: training.Metrics(1.0, next(scores)))
    found = train_in(tmp_path, on_epoch=lambda classifier, _: seen.append(copy_of(classifier)))
    assert found.best_epoch == 1
    assert_equal(nnx.state(found.best), seen[1])
    assert_equal(nnx.state(found.last), seen[2])


def test_the_checkpoint_of_another_training_is_refused(tmp_path):
    train_in(tmp_path, seed=0, network="mlp")
    message = (
        rf"^{tmp_path}/2 belongs to another run \(seed is 0 there, 7 here; network is 'mlp' there, missing here\): put"
    )
    with pytest.raises(ValueError, match=message):
        train_in(tmp_path, seed=7)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"recipe": dataclasses.replace(SHORT, momentum=0.5)}, "momentum is 0.9 there, 0.5 here"),
        ({"recipe": dataclasses.replace(SHORT, augment=training.crop_and_mirror)}, "augment is 'None' there, .*crop"),
        ({"attack": attacks.PGD(norm="l2", epsilon=0.1, step_size=0.1, num_steps=1)}, "attack is 'None' there, .*PGD"),
        ({"seed_of_key": 2}, r"key is '\[0, 1\]' there, '\[0, 2\]' here"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_another_recipe_attack_or_key_is_refused(tmp_path, other, difference):
    train_in(tmp_path)
    with pytest.raises(ValueError, match=rf"belongs to another run \({difference}.*\): put"):
        train_in(tmp_path, **other)


def test_functions_of_a_recipe_are_compared_by_their_names(tmp_path):
    """Their addresses differ in every process."""

    def augmentation():
        def mirrored(key, images):
            return images[:, :, ::-1]

        return mirrored

    first, second = (dataclasses.replace(SHORT, augment=augmentation()) for _ in range(2))
    assert repr(first) != repr(second)
    assert train_in(tmp_path, recipe=first).history == train_in(tmp_path, recipe=second).history


def test_a_checkpoint_under_the_name_of_another_epoch_is_refused(tmp_path):
    train_in(tmp_path)
    (tmp_path / "2").rename(tmp_path / "5")
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/5 is the checkpoint of epoch 2 under another name: rename it to 2"
    ):
        train_in(tmp_path)


def test_samples_that_have_changed_are_refused(tmp_path):
    train_in(tmp_path)
    changed = np.asarray(IMAGES).copy()
    changed[-1, 0, 0, 0] += 1e-3
    digits = "'[0-9a-f]{16}'"
    with pytest.raises(ValueError, match=rf" belongs to another run \(samples is {digits} there, {digits} here\): put"):
        train_in(tmp_path, images=changed)
    train_in(tmp_path, images=np.asfortranarray(IMAGES))  # in another order in memory, they are the same


def test_training_goes_on_before_a_damaged_checkpoint(tmp_path):
    expected = train_in(tmp_path)
    (tmp_path / "2" / "metrics" / "metrics").write_bytes(b"\x82")
    message = f"^the checkpoint of epoch 2 is damaged and was moved to {tmp_path}/damaged-2: training goes on from the"
    with pytest.warns(UserWarning, match=f"{message} checkpoint of epoch 1$"):
        found = train_in(tmp_path)
    assert_equal(nnx.state(found.last), nnx.state(expected.last))


def test_one_training_is_at_work_in_a_folder(tmp_path):
    def train_there_too(classifier, history):
        with pytest.raises(ValueError, match=f"^process .* is at work in {tmp_path}: wait for it, or choose another"):
            train_in(tmp_path)
        met.append(len(history))

    met = []
    train_in(tmp_path, on_epoch=train_there_too)
    assert met == [1, 2, 3]
