"""One process on two cores against two processes of one core each, to fill one store: which is faster?

python -m experiments.benchmarks.processes
"""

import argparse
import functools
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

_MODEL = """
import jax
from hmt_jax import models

def make():
    return models.create("lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=10)
"""


def seconds_of(count: int, folder: pathlib.Path) -> float:
    """Seconds until `count` processes, one on two cores or two of one core each, have filled a store."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--num-processes", str(count)]
    command = [sys.executable, "-m", "hmt_jax", "measure", "--model", f"{folder}/net.py:make"]
    command += ["--images", f"{folder}/images.npy", "--subspaces", "dct-diagonal:8:5", "--chunk-size", "100"]
    command += ["--out", f"{folder}/{count}.zarr", "--cache-dir", f"{folder}/cache-{count}"]
    started = time.perf_counter()
    processes = []
    for number in range(count):
        own = {cores[number]} if count > 1 else set(cores)
        alone = [*meeting, "--process-id", str(number)] if count > 1 else []
        processes.append(
            subprocess.Popen(
                [*command, *alone],
                stdout=subprocess.DEVNULL,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, own),
            )
        )
    if any(process.wait() for process in processes):
        raise RuntimeError("a process has failed")
    return time.perf_counter() - started


def main() -> None:
    """Prints the seconds of both, from the first import to the last chunk, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "net.py").write_text(_MODEL)
        np.save(folder / "images.npy", np.random.default_rng(0).random((arguments.num_images, 28, 28, 1), "f4"))
        found = {count: seconds_of(count, folder) for count in (1, 2)}
    for count, seconds in found.items():
        print(f"{count} process{'es' * (count > 1)} on two cores: {seconds:.1f} s")
    print(f"ratio: {found[2] / found[1]:.2f}")


if __name__ == "__main__":
    main()
