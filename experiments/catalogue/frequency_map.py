"""The experiments on single frequencies, and the numbers that decide their claims."""

import dataclasses
import pathlib

from experiments import frequency_map
from experiments.claims import Claim
from experiments.experiment import Experiment
from experiments.frequency_map import FrequencyMap
from hmt_jax.estimates import Estimate


def correlation_with_errors(path: pathlib.Path) -> Estimate:
    """Spearman's rank correlation of median margins and errors under noise of the middle norm."""
    found = frequency_map.read(path)
    return frequency_map.correlation(found, len(found.norms) // 2)


def spread_where_errors_are_silent(path: pathlib.Path) -> Estimate:
    """How much medians differ where noise of the middle norm leaves the error as it was: upper over lower decile."""
    found = frequency_map.read(path)
    return frequency_map.spread(found, frequency_map.is_at_floor(found, len(found.norms) // 2))


def share_missed(path: pathlib.Path) -> Estimate:
    """The share of labels changed by noise of a norm that the margin exceeds."""
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
                "-1 if both had one order. An error counts the amplitudes below the norm, and a median is the middle "
                "of all: frequencies whose amplitudes spread more may change places, and those without an error share "
                "one. As where an order is claimed elsewhere.",
                at_most=-0.8,
            ),
            Claim(
                "upper over lower decile of the median amplitudes where that noise makes no more errors",
                spread_where_errors_are_silent,
                "The heat map calls these frequencies equal. Medians of 25 images scatter by tenths: three times is "
                "a difference that users would want to see.",
                at_least=3,
            ),
            Claim(
                "share of labels that noise changes before the amplitude found",
                share_missed,
                "0 if the scan misses nothing. It passes over a region shorter than a sixteenth of the first-order "
                "distance; more than one in a hundred would not be exact.",
                at_most=0.01,
            ),
        ],
        note="""Margins of LeNet on MNIST along single Fourier waves, beside the heat map of errors under such noise.

        Claim: both maps order the frequencies alike, and where the heat map shows no errors, amplitudes still differ.

        A basis image is a wave of norm 1, and its amplitude for an image is the margin along it: how much of the wave,
        added or taken away, changes the label. `Scan` finds it up to 64 first-order distances, at every sixteenth of
        one. The heat map (Yin et al., 2019) is the error under noise of one wave at a fixed norm, here of both signs in
        place of a random one, and without clipping pixels, which would add other frequencies. It counts the amplitudes
        below that norm: at one norm it says nothing of frequencies at which no label changes, or all do. `map.png`
        shows the maps, and `agreement.png` their values against each other. Errors are wrong labels, whatever the label
        without noise. Thresholds were fixed after a look at the amplitudes of 20 training images along 32 waves, with
        medians from 6 to 440, and before any errors were counted. `--basis dct` does the same along single basis
        images of the DCT.
        """,
    ),
}
