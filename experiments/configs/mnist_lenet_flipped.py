"""Margins of LeNet on MNIST with all frequencies flipped, in training and measurement.

    python -m experiments run mnist_lenet_flipped

Claim: the data decide, not the architecture. The margins flip along: large at low frequencies, small at high ones.
"""

import dataclasses

from experiments.configs import mnist_lenet

CONFIG = dataclasses.replace(mnist_lenet.CONFIG, manipulation="flip")
QUICK = dataclasses.replace(CONFIG, num_epochs=1, num_images=10)
CHECKS = ()
