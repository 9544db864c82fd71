"""Margins of LeNet on MNIST along the diagonal of the DCT.

    python -m experiments run mnist_lenet

Claim: the median margin grows from the low to the high frequencies, to more than ten times the least.
"""

import dataclasses

from experiments.diagonal import DiagonalMargins

CONFIG = DiagonalMargins(data="mnist", network="lenet", window_size=8, window_step=1)
QUICK = dataclasses.replace(CONFIG, num_epochs=1, num_images=10)
CHECKS = ()
