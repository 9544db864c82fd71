"""The forms that experiments on images share: changes of a configuration, and its quick form."""

import dataclasses
from typing import Any

from experiments.images import Images

_FEW: dict[str, Any] = {"num_epochs": 2, "num_images": 20, "num_monitored": 20, "attack_steps": 2}


def flipped(config: Images, baseline: str) -> Images:
    """The configuration with all frequencies flipped, in training and measurement."""
    return dataclasses.replace(config, manipulation="flip", baseline=baseline)


def small(config: Images) -> Images:
    """The quick form for LeNet."""
    return dataclasses.replace(
        config, num_train=4000, num_test=1000, evaluation_steps=min(config.evaluation_steps, 4), **_FEW
    )


def deep(config: Images) -> Images:
    """The quick form for deep networks, which take about a minute to compile.

    So few steps of training leave some of them flat. DenseNet-121 compiles for longer than a quick form may take, so
    ResNet-18 stands in for it.
    """
    changes = {**_FEW, "num_epochs": 1, "num_images": 2, "attack_steps": 1, "max_steps": 2}
    return dataclasses.replace(
        config,
        network=config.network.replace("densenet121", "resnet18"),
        num_train=32,
        num_test=32,
        batch_size=16,
        window_step=4 * config.window_step,
        evaluation_steps=min(config.evaluation_steps, 1),
        **changes,
    )
