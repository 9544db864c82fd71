"""Where adversarial perturbations of LeNet on MNIST have their energy, after every epoch of adversarial training.

    python -m experiments run robust_spectrum

Claim: their spectrum moves to low frequencies while the margins grow, and the margins follow fast. `spectrum.png` shows
the energy by window and epoch, `history.png` the margins. Perturbations keep pixels in [0, 1], which on black
backgrounds bounds their frequencies, too.
"""

import dataclasses

from experiments import claims
from experiments.checks import Check
from experiments.configs import _mnist, _quick

CONFIG = dataclasses.replace(_mnist.robust(_mnist.LENET), baseline="none", measure_every=1, num_monitored=1000)
QUICK = dataclasses.replace(_quick.small(CONFIG), num_epochs=3, measure_every=1)
CHECKS = (
    Check(
        "growth of the lowest window's share of the energy in training",
        claims.growth_of_low_energy,
        "More than none; a tenth is what networks of other seeds may differ by.",
        at_least=1.1,
    ),
    Check(
        "share of the growth of the high windows' margins that is reached halfway through training",
        claims.early_growth,
        "Margins that grew evenly from the first epoch to the tenth would have four ninths of it by the fifth; those "
        "that follow the perturbations fast have more.",
        at_least=0.5,
    ),
)
