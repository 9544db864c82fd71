"""One process of a job of several: `python job.py TASK PORT INDEX COUNT FOLDER` does a task and writes what it finds.

The job has two devices, whatever the number of its processes. `Job` starts all of its processes, for the tests.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
from flax import nnx

from hmt_jax import _processes, checkpoints, data, training

TIMEOUT = 240  # seconds: many times what a job takes on two cores


class Small(nnx.Module):
    """Batch norm and dropout around two linear layers, which compile in little time."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden, self.norm = nnx.Linear(16, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.dropout, self.logits = nnx.Dropout(0.3), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, images):
        features = self.hidden(images.reshape(len(images), -1))
        return self.logits(self.dropout(nnx.relu(self.norm(features))))


class Convolutional(nnx.Module):
    """A convolution, batch norm over its responses, and dropout with a random stream of its own."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(1, 3, (3, 3), rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.dropout, self.logits = nnx.Dropout(0.3, rngs=nnx.Rngs(1)), nnx.Linear(48, 3, rngs=rngs)

    def __call__(self, images):
        responses = self.dropout(nnx.relu(self.norm(self.conv(images))))
        return self.logits(responses.reshape(len(images), -1))


# 37 samples are four batches of 8 and one of 5: of this one, the second process has a single sample, and 3 are added.
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.uniform(size=(37, 4, 4, 1)).astype(np.float32), RNG.integers(0, 3, 37)
RECIPE = training.Recipe(num_epochs=4, batch_size=8, max_learning_rate=0.5, augment=training.crop_and_mirror)
KEY_SEED = 3


def stream(images=IMAGES, labels=LABELS):
    return data.loader(list(zip(images, labels, strict=True)), batch_size=8, seed=1)


def train_on_stream(classifier, devices=None):
    return training.train_on_stream(classifier, stream(), RECIPE, jax.random.key(KEY_SEED), devices=devices)


def train_on_arrays(classifier, devices=None):
    """The classifier after 20 steps, and the metrics of the last epoch."""
    seen = []
    arguments = classifier, IMAGES, LABELS, RECIPE, jax.random.key(KEY_SEED)
    trained = training.train(*arguments, devices=devices, on_epoch=lambda *found: seen.append(found[2]))
    return trained, seen[-1]


def arrays_of(classifier):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(classifier, nnx.Param, nnx.BatchStat))]


def kept_in(folder, **options):
    tested = {"test_images": IMAGES[:9], "test_labels": LABELS[:9]}
    recipe = dataclasses.replace(RECIPE, num_epochs=8)
    arguments = Convolutional(), IMAGES, LABELS, recipe, jax.random.key(KEY_SEED)
    return checkpoints.train(folder / "checkpoints", *arguments, **tested, **options)


def error_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class Broken:
    """A list of samples, one of which can't be read, in one process."""

    def __init__(self, index):
        self.index = index

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, number):
        if self.index and number == 20:
            raise OSError("sample 20 can't be read")
        return IMAGES[number], int(LABELS[number])


def find_errors(index):
    """What is raised when only the second process has something wrong."""
    wrong = np.where(np.arange(37) == 13, 3 if index else 0, LABELS)  # in the second process's rows
    small = Small()
    small.eval()

    def fail(*_):
        if index:
            raise ValueError("the disk of process 1 is full")

    def train(**changes):
        arguments = {"images": IMAGES, "labels": LABELS, "recipe": RECIPE, "key": jax.random.key(0)} | changes
        return training.train(small, **arguments)

    def on(source, **options):
        return training.train_on_stream(small, source, RECIPE, jax.random.key(0), **options)

    return {
        "label": error_of(lambda: on(data.loader(list(zip(IMAGES, wrong, strict=True)), batch_size=8, shuffle=False))),
        "source": error_of(lambda: on(data.loader(Broken(index), batch_size=8, shuffle=False))),
        "array": error_of(lambda: train(labels=wrong)),
        "evaluate": error_of(lambda: training.evaluate(small, IMAGES, wrong)),
        "callback": error_of(lambda: on(stream(), on_epoch=fail)),
        "key": error_of(lambda: train(key=jax.random.key(index))),
        "nan": error_of(lambda: on(stream(np.where(IMAGES[7] == IMAGES, np.nan, IMAGES)))),
        "batch size": error_of(lambda: train(recipe=dataclasses.replace(RECIPE, batch_size=9))),
        "few": error_of(lambda: data.loader(list(zip(IMAGES[:5], LABELS[:5], strict=True)), batch_size=8)),
        "devices": error_of(lambda: train(devices=jax.devices()[1 - index : 2 - index])),
        "alone": error_of(lambda: on(stream(), devices=jax.local_devices())),
    }


def die_at(moment, folder):
    """Ends this process with SIGKILL at a moment of its training."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_when_written():
        while not list((folder / "checkpoints").glob("*tmp*")):
            time.sleep(0.0005)
        die()

    if moment == "first evaluation":
        checkpoints.training.evaluate = die
    elif moment == "writing":
        threading.Thread(target=die_when_written, daemon=True).start()
    elif moment == "checksums":
        checkpoints._disk.write = die
    elif moment == "middle of an epoch":
        write = checkpoints._disk.write

        def write_and_die_later(*arguments):
            write(*arguments)
            threading.Timer(0.02, die).start()

        checkpoints._disk.write = write_and_die_later
    elif moment == "callback":
        return {"on_epoch": lambda classifier, history: die() if len(history) % 3 == 0 else None}
    return {}


def save_on_a_full_disk(index, folder):
    """What is raised if the first process can't write."""
    from orbax.checkpoint._src.multihost import multihost

    multihost._DEFAULT_BARRIER_TIMEOUT = 5  # seconds, for which the second process waits in vain
    state, limits = training.start(Small(), RECIPE, 37), resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints.Checkpoints(folder / "checkpoints") as kept:
        kept.save(0, state, score=0.5)
        if index == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        error = error_of(lambda: kept.save(1, state, score=0.9))
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return error


def stop_by_sigterm(index, folder):
    """The message of a training whose first process gets SIGTERM at its twelfth step, of slow ones."""
    ask, numbers = _processes.is_preempted, itertools.count()

    def ask_slowly():
        if (number := next(numbers)) == 12 and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2 if number < 25 else 2)  # long enough for processes that share two cores with others
        return ask()

    _processes.is_preempted = ask_slowly
    return error_of(lambda: kept_in(folder))


def do(task, index, folder):
    if task == "sigterm":
        return [], {"error": stop_by_sigterm(index, folder)}
    if task == "full disk":
        return [], {"error": save_on_a_full_disk(index, folder)}
    if task == "stream":
        trained = train_on_stream(Small())
        evaluated = training.evaluate(trained, IMAGES, LABELS, batch_size=10)
        return arrays_of(trained), {"evaluated": evaluated, **find_errors(index)}
    if task == "arrays":
        (trained, metrics), streamed = train_on_arrays(Convolutional()), train_on_stream(Convolutional())
        alone, _ = train_on_arrays(Convolutional(), jax.local_devices())
        local = {str(device) for leaf in jax.tree.leaves(nnx.state(trained)) for device in leaf.devices()}
        return [*arrays_of(trained), *arrays_of(streamed), *arrays_of(alone)], {
            "metrics": metrics,
            "devices": sorted(local),
        }
    _, _, moment = task.partition(":")
    found = kept_in(folder, **(die_at(moment, folder) if index == 0 else {}))
    history = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in found.history]
    return [*arrays_of(found.last), *arrays_of(found.best)], {"best": found.best_epoch, "history": history}


def main():
    task, port, index, count, folder = sys.argv[1:]
    index, count, folder = int(index), int(count), pathlib.Path(folder)
    jax.config.update("jax_num_cpu_devices", 2 // count)
    if count > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", num_processes=count, process_id=index, cluster_detection_method="deactivate"
        )
    arrays, found = do(task, index, folder)
    np.savez(folder / f"{index}.npz", *arrays)
    (folder / f"{index}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def start(task, count, folder):
    """The processes of a job, which are killed at the end if they are still there."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        # As for what the tests compile themselves.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent.parent), *sys.path]),
    }
    processes = []
    try:
        for index in range(count):
            command = [sys.executable, __file__, task, str(port), str(index), str(count), str(folder)]
            with open(folder / f"{index}.log", "wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait(TIMEOUT)


def finish(task, count, folder):
    """The arrays and the findings of every process of a job."""
    with start(task, count, folder) as processes:
        for index, process in enumerate(processes):
            code = process.wait(TIMEOUT)
            assert code == 0, (folder / f"{index}.log").read_text()
    results = []
    for index in range(count):
        with np.load(folder / f"{index}.npz") as arrays:
            results.append((list(arrays.values()), json.loads((folder / f"{index}.json").read_text())))
    return results


def kill(task, count, folder):
    """Starts a job whose first process dies, and kills the others then."""
    with start(task, count, folder) as (first, *_):
        assert first.wait(TIMEOUT) == -signal.SIGKILL, (folder / "0.log").read_text()


if __name__ == "__main__":
    main()
