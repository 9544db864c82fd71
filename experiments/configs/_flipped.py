"""What the experiments on flipped data share."""

import dataclasses

from experiments.diagonal import DiagonalMargins


def flipped(config: DiagonalMargins) -> DiagonalMargins:
    """With all frequencies flipped, in training and measurement."""
    return dataclasses.replace(config, manipulation="flip", baseline="plain_data")
