"""What the experiments do to images of MNIST: manipulated ones, and the least perturbations by window of the DCT.

    python -m experiments run image_gallery

`manipulated.png` shows images with their frequencies flipped, low- and high-passed, and without the low ones;
`perturbations.png` shows how LeNet is made to change its mind: what `mnist_lenet` measures, as pictures.
Claims: flipping loses nothing; a quarter of the frequencies, the lowest, holds nearly all of an image; and every
perturbation stays in its window and changes the label.
"""

import dataclasses

from experiments.checks import Check
from experiments.configs import _mnist, _quick
from experiments.gallery import Gallery, energy_left, greatest_energy_outside, share_of_changed_labels

CONFIG = Gallery(**dataclasses.asdict(_mnist.LENET), shown=("flip", "low_pass:14", "high_pass:14", "cutoff_low:14"))
QUICK = _quick.small(CONFIG)
_ROUNDING = "Exact but for float32, which leaves some millionths."
CHECKS = (
    Check(
        "energy of flipped images over that of plain ones",
        energy_left("flip"),
        _ROUNDING,
        at_least=0.999,
        at_most=1.001,
    ),
    Check(
        "share of the energy left by the low-pass filter",
        energy_left("low_pass:14"),
        "Strokes are a few pixels wide: their edges, which need higher frequencies, are a small part of them.",
        at_least=0.9,
    ),
    Check(
        "share of perturbed images that get another label",
        share_of_changed_labels,
        "All of them: that is what a perturbation is for.",
        at_least=1,
    ),
    Check(
        "greatest share of a perturbation's energy outside its window",
        greatest_energy_outside,
        _ROUNDING,
        at_most=1e-4,
    ),
)
