"""Training in several processes, against one process with as many devices."""

import re

import jax
import job
import numpy as np
import pytest

from hmt_jax import checkpoints, training

TWO = jax.devices()[:2]
# A sum of two parts in float32 has no order in which it could round differently; this is for compilers that reorder
# what each device adds up.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


@pytest.mark.slow
def test_two_processes_train_on_a_stream_as_one(tmp_path):
    """With batch norm, dropout and augmentation; and what is wrong in one process is told by both."""
    one = job.train_on_stream(job.Small(), TWO)
    first, second = job.finish("stream", 2, tmp_path)
    evaluated = training.evaluate(one, job.IMAGES, job.LABELS, devices=TWO)
    for arrays, found in (first, second):
        assert_close(arrays, job.arrays_of(one))
        np.testing.assert_allclose(found["evaluated"], evaluated, **TOLERANCE)

    no_class = (
        "ValueError: labels must be whole numbers from 0 to 2, since the classifier has 3 logits, but the greatest"
    )
    several = "if several processes share it, got 5 samples for batch_size 8 and 2 processes: pass more samples"
    for name, beginning in {
        "label": f"{no_class} one is 3: number the classes from 0",
        "source": "OSError: sample 20 can't be read",
        "array": no_class,
        "evaluate": no_class,
        "callback": "ValueError: the disk of process 1 is full",
        "key": "ValueError: key differ between the 2 processes: pass the same in each, for example made from the same",
        "nan": "FloatingPointError: the loss or its gradient became NaN or infinite in step 4, in epoch 0: lower",
        "batch size": "ValueError: batch_size 9 is not divisible by the number of devices, 2: change it, or pass fewer",
        "few": f"ValueError: source must have a sample, and fill a batch {several}",
        "devices": "ValueError: devices must be as many of each of the 2 processes, or of this one alone, got those of",
        "alone": "ValueError: the stream shares its batches between 2 processes, but the devices are of 1: pass",
    }.items():
        for _, found in (first, second):
            assert found[name].startswith(beginning), name
    assert first[1]["label"] == second[1]["label"]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    trained, metrics = job.train_on_arrays(job.Convolutional(), TWO)
    streamed = job.train_on_stream(job.Convolutional(), TWO)
    alone, _ = job.train_on_arrays(job.Convolutional(), TWO[:1])
    expected = [*job.arrays_of(trained), *job.arrays_of(streamed), *job.arrays_of(alone)]
    first, second = job.finish("arrays", 2, tmp_path)
    for arrays, found in (first, second):
        assert_close(arrays, expected)
        np.testing.assert_allclose(found["metrics"], metrics, **TOLERANCE)
        assert len(found["devices"]) == 1  # ready for what runs in a single process
    assert first[1]["devices"] != second[1]["devices"]


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path):
    """In two processes, and at times in one, with the same two devices."""
    ((expected, alone),) = job.finish("checkpoints", 1, tmp_path / "alone")
    killed = tmp_path / "killed"
    for moment, count in (
        ("first evaluation", 2),
        ("writing", 2),
        ("checksums", 2),
        ("callback", 1),
        ("middle of an epoch", 2),
    ):
        job.kill(f"checkpoints:{moment}", count, killed)
    for arrays, found in job.finish("checkpoints", 2, killed):
        assert_close(arrays, expected)
        assert found["best"] == alone["best"]
        for ours, theirs in zip(found["history"], alone["history"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_two_processes_stop_at_one_step_when_one_is_told_to(tmp_path):
    ((expected, alone),) = job.finish("checkpoints", 1, tmp_path / "alone")
    folder = tmp_path / "stopped"
    (_, first), (_, second) = job.finish("sigterm", 2, folder)
    assert first == second
    [num_steps] = map(int, re.findall(r"^PreemptedError: training stopped after step (\d+), kept in", first["error"]))
    assert 12 <= num_steps < 40
    assert (folder / "checkpoints" / "unfinished").exists() == (num_steps % 5 > 0)
    for arrays, found in job.finish("checkpoints", 2, folder):
        assert_close(arrays, expected)
        for ours, theirs in zip(found["history"], alone["history"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_told_by_both(tmp_path):
    for _, found in job.finish("full disk", 2, tmp_path):
        assert found["error"].startswith(f"OSError: the checkpoint {tmp_path}/checkpoints/1 can't be written")
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as kept:
        assert kept.last_epoch == 0
        state = training.start(job.Small(), job.RECIPE, 37)
        assert_close(job.arrays_of(training.classifier_of(kept.restore(state)[0])), job.arrays_of(job.Small()))
