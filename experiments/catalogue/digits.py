"""The tour on the 8 x 8 digits of scikit-learn, which need no download."""

import dataclasses

from experiments.catalogue import _claims
from experiments.claims import Claim
from experiments.experiment import Experiment
from experiments.images import Images

_DIGITS = Images(data="digits", network="mlp", num_epochs=60, num_images=360, window_size=3, window_step=1)

TABLE = {
    "digits": Experiment(
        config=_DIGITS,
        quick=dataclasses.replace(_DIGITS, num_epochs=5, num_images=40),
        claims=[
            Claim(
                "margin in the highest window over that in the lowest",
                _claims.highest_over_lowest,
                "Windows of 3 of 8 frequencies are broad, so that neighbours share most of what they hold: half as "
                "much again.",
                at_least=1.5,
            )
        ],
        note="""Margins of a small network on the 8 x 8 digits of scikit-learn: the tour, in a minute.

        Claim: already on tiny images, margins are small along low frequencies, which tell digits apart, and large along
        high ones.
        """,
    )
}
