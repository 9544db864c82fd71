"""Quick forms: the same program on few images, for seconds to two minutes on two CPU cores.

DenseNet-121 takes longer: XLA alone compiles for more than two minutes there.
"""

import dataclasses
from typing import Any

from experiments.diagonal import DiagonalMargins

_FEW: dict[str, Any] = {"num_epochs": 2, "num_images": 20, "num_monitored": 20, "attack_steps": 2}


def small(config: DiagonalMargins) -> DiagonalMargins:
    """For LeNet."""
    return dataclasses.replace(
        config, num_train=4000, num_test=1000, evaluation_steps=min(config.evaluation_steps, 4), **_FEW
    )


def deep(config: DiagonalMargins) -> DiagonalMargins:
    """For deep networks, which take about a minute to compile; so few steps of training leave some of them flat."""
    changes = {**_FEW, "num_epochs": 1, "num_images": 2, "attack_steps": 1, "max_steps": 5}
    return dataclasses.replace(
        config,
        num_train=128,
        num_test=128,
        batch_size=64,
        window_step=4 * config.window_step,
        evaluation_steps=min(config.evaluation_steps, 1),
        **changes,
    )
