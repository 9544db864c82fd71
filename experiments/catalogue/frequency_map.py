"""The experiments on single frequencies, and the numbers that decide their claims."""

import dataclasses
import pathlib

from experiments import frequency_map
from experiments.claims import Claim
from experiments.experiment import Experiment
from experiments.frequency_map import FrequencyMap
from hmt_jax.estimates import Estimate


def correlation_with_errors(path: pathlib.Path) -> Estimate:
    """Spearman's rank correlation of median amplitudes and errors under noise of the middle norm."""
    found = frequency_map.read(path)
    return frequency_map.correlation(found, len(found.norms) // 2)


def spread_where_errors_are_silent(path: pathlib.Path) -> Estimate:
    """The upper over the lower decile of median amplitudes at frequencies where the middle norm adds no errors."""
    found = frequency_map.read(path)
    return frequency_map.spread(found, frequency_map.is_at_floor(found, len(found.norms) // 2))


def share_missed(path: pathlib.Path) -> Estimate:
    """The share of labels that noise changes although its norm is below the amplitude."""
    return frequency_map.share_missed(frequency_map.read(path))


_MNIST = FrequencyMap(baseline="mnist_lenet", data="mnist")

TABLE = {
    "margin_map_single_frequencies": Experiment(
        config=_MNIST,
        quick=dataclasses.replace(_MNIST, norms=(8.0,), num_images=1, num_tested=10),
        claims=[
            Claim(
                "rank correlation of median amplitudes and errors under noise of the middle norm",
                correlation_with_errors,
                "-1 if both had the same order. An error counts the amplitudes below the norm, and a median is the "
                "middle of all: frequencies whose amplitudes spread more may change places, and those without errors "
                "share one place. The threshold is that of other claims about an order.",
                at_most=-0.8,
            ),
            Claim(
                "upper over lower decile of the median amplitudes where noise of the middle norm makes no more errors",
                spread_where_errors_are_silent,
                "The heat map shows these frequencies as equal. Medians of 25 images scatter by some tenths of their "
                "value; a factor of three is a difference that users would want to see.",
                at_least=3,
            ),
            Claim(
                "share of labels that noise changes before the amplitude found",
                share_missed,
                "0 if the scan misses nothing. It can miss a region of another label that is shorter than a sixteenth "
                "of the first-order distance. If it missed more than one label in a hundred, amplitudes could not be "
                "called exact.",
                at_most=0.01,
            ),
        ],
        note="""Margins of LeNet on MNIST along single Fourier waves, beside heat maps of errors under noise along them.

        Claim: amplitudes and heat map order the frequencies alike, and where the heat map shows no added errors,
        amplitudes still differ.

        A basis image is a wave of norm 1, and its amplitude for an image is the margin along it: how much of the wave,
        added or subtracted, changes the label. `Scan` looks for it at every sixteenth of the first-order distance, up
        to 64 such distances. The heat map (Yin et al., 2019) shows the error under noise of one wave at a fixed norm,
        here with both signs instead of a random one, and without clipping pixels, which would add other frequencies.
        In effect, it counts the amplitudes below that norm. It can't tell apart frequencies at which no label changes,
        or those at which all do. `map.png` shows the maps, and `agreement.png` their values against each other. Errors
        are wrong labels, whatever the label without noise. Thresholds were fixed after a look at the amplitudes of 20
        training images along 32 waves, with medians from 6 to 440, and before any errors were counted. `--basis dct`
        does the same along single basis images of the DCT.
        """,
    ),
}
