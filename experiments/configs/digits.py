"""Margins of a small network on the 8 x 8 digits of scikit-learn: the tour, in a minute, with no download.

    python -m experiments run digits

Claim: already on tiny images, margins are small along low frequencies, which tell digits apart, and large along high
ones.
"""

from experiments.config import Experiment

CONFIG = Experiment(data="digits", network="mlp", num_epochs=60, window_size=3, window_step=1)
