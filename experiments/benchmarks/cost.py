"""How long ImageNet's 50,000 validation images take with ResNet-50 on devices like this one, from a few images.

    python -m experiments.benchmarks.cost

An image costs its linearisation once, and a search in each subspace. Both follow from the times with few and with many
subspaces. Processes do not wait for each other, so time falls with the number of devices.
"""

import argparse
import math

import jax

from experiments import tables
from experiments.benchmarks.workloads import PLANS, Workload
from hmt_jax import solvers

_NUM_IMAGES = 50_000
_EACH = 6  # of so many windows along the diagonal, one is measured: the first, the middle and the last but one
_CHUNK = 64  # images, so that a device that ends last has worked for minutes more than the others, not hours


def seconds_of(workload: Workload) -> tuple[float, float]:
    """The seconds that an image takes once, and those that each of its subspaces adds."""
    few, many = (workload._replace(subspaces=workload.subspaces[::each]) for each in (len(workload.subspaces), _EACH))
    times = [each.measure(num_repeats=1)[2] / len(workload.images) for each in (few, many)]
    of_pair = (times[1] - times[0]) / (len(many.subspaces) - 1)
    return max(times[0] - of_pair, 0.0), of_pair


def hours(of_image: float, of_pair: float, num_windows: int, num_devices: int) -> float:
    """The hours until the last of the devices has measured its share of the chunks."""
    chunks = math.ceil(math.ceil(_NUM_IMAGES / _CHUNK) / num_devices)
    return chunks * _CHUNK * (of_image + num_windows * of_pair) / 3600


def main() -> None:
    """Prints a table of hours."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-images", type=int, default=4, help="images to measure")
    parser.add_argument("--effort", default="quick", help="effort of the solver tight")
    arguments = parser.parse_args()
    workload = PLANS["resnet50_imagenet"].build(arguments.num_images, None)
    of_image, of_pair = seconds_of(workload._replace(solver=solvers.tight(arguments.effort)))
    device = jax.local_devices()[0].device_kind
    print(f"on {device}, an image takes {of_image:.3g} s, and each of its subspaces {of_pair:.3g} s more\n")
    rows = [
        [
            f"{num_windows}",
            *(f"{float(f'{hours(of_image, of_pair, num_windows, number):.3g}'):,g}" for number in (1, 8, 64)),
        ]
        for num_windows in (14, 217)
    ]
    print(tables.markdown(["windows | hours on 1 device | on 8 | on 64", *(" | ".join(row) for row in rows)]))


if __name__ == "__main__":
    main()
