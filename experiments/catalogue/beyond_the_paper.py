"""Experiments on MNIST that the paper does not have, and the numbers that decide their claims."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from experiments import store
from experiments.analyses.gallery import Gallery
from experiments.catalogue import _claims, _forms, mnist
from experiments.claims import Claim, Statistic
from experiments.experiment import Experiment
from hmt_jax import frequency
from hmt_jax.estimates import Estimate, from_medians, from_samples


def growth_of_low_energy(path: pathlib.Path) -> Estimate:
    """The share of the perturbations' energy in the lowest window after the last epoch, over that after the first."""
    first, *_, last = _claims.measured_epochs(path, at_least=2)

    def statistic(first_low, first_total, last_low, last_total):
        return (last_low.mean() / last_total.mean()) / (first_low.mean() / first_total.mean())

    arrays = [part for epoch in (first, last) for part in (epoch["energy"][0], epoch["total_energy"])]
    return from_samples(statistic, *arrays)


def early_growth(path: pathlib.Path) -> Estimate:
    """The growth of the high windows' medians by half of the measured epochs, over that by all of them; of logarithms.

    The high windows are the upper third; their medians count by the geometric mean, and grow from the first epoch on.
    """
    found = _claims.measured_epochs(path, at_least=3)
    epochs = [found[place]["margin"] for place in (0, (len(found) - 1) // 2, -1)]
    highs = [found[len(found) * 2 // 3 :] for found in epochs]

    def statistic(*medians):
        first, half, last = (np.log(high).mean() for high in medians)
        return (half - first) / (last - first)

    return from_medians(statistic, *highs)


def correlation_with_distance(path: pathlib.Path) -> Estimate:
    """Rank correlation, over the windows, of the medians with the distance of the window from the lowest one."""
    found, corners = _claims.margins(path)
    distances = np.hypot(*corners.T)
    return from_medians(lambda medians: _claims.spearman(medians, distances), found)


def growth_along_axes(path: pathlib.Path) -> Estimate:
    """The lesser median of the two windows at the ends of the axes, over that of the lowest window."""
    found, corners = _claims.margins(path)
    row_is_low, column_is_low = (corners == 0).T
    row_is_high, column_is_high = (corners == corners.max(0)).T
    places = [row_is_low & column_is_high, row_is_high & column_is_low, row_is_low & column_is_low]
    across, down, lowest = (int(np.flatnonzero(place)[0]) for place in places)
    return from_medians(lambda medians: min(medians[across], medians[down]) / medians[lowest], found)


def correlation_of_first_with_last(path: pathlib.Path) -> Estimate:
    """Rank correlation, over the windows, of the medians at the first measured epoch with those at the last."""
    first, *_, last = _claims.measured_epochs(path, at_least=2)
    return from_medians(_claims.spearman, first["margin"], last["margin"])


def energy_left(manipulation: str) -> Statistic:
    """The energy of manipulated images over that of the plain ones."""

    def statistic(path):
        arrays = store.read_arrays(path / "manipulated.npz")
        energies = dict(zip(arrays["manipulation"].tolist(), arrays["energy"], strict=True))
        if manipulation not in energies:
            raise ValueError(f"{manipulation} is not among the manipulations: add it to shown")
        return from_samples(lambda part, whole: part.sum() / whole.sum(), energies[manipulation], energies["plain"])

    return statistic


def share_of_changed_labels(path: pathlib.Path) -> Estimate:
    """The share of perturbed images, over all windows, that the network gives another label."""
    arrays = store.read_arrays(path / "perturbations.npz")
    return from_samples(np.mean, (arrays["label"] != arrays["label_of_perturbed"]).mean(0))


def largest_energy_outside(path: pathlib.Path) -> Estimate:
    """The largest share of a perturbation's energy that lies outside its window."""
    origin = store.baseline(path)
    if origin is None:
        raise ValueError(f"{path} has no network: set baseline to the name of the experiment that trains it")
    arrays, size = store.read_arrays(path / "perturbations.npz"), store.settings(origin)["window_size"]
    energy = np.asarray(frequency.dct(jnp.asarray(arrays["perturbation"]))) ** 2
    inside = [
        each[:, row : row + size, column : column + size].sum((1, 2, 3))
        for each, (row, column) in zip(energy, arrays["corner"].tolist(), strict=True)
    ]
    return from_samples(np.max, np.max(1 - np.array(inside) / energy.sum((2, 3, 4)), axis=0))


_MAP = dataclasses.replace(mnist.LENET, windows="grid", window_step=2, measure_every=2)
_SPECTRUM = dataclasses.replace(mnist.robust(mnist.LENET, "none"), measure_every=1, num_monitored=1000)
_LOW, _HIGH = (
    dataclasses.replace(mnist.robust(mnist.LENET, "mnist_lenet_10_epochs"), attack_band=band)
    for band in ("low_pass:14", "high_pass:14")
)
_GALLERY = Gallery(baseline="mnist_lenet", shown=("flip", "low_pass:14", "high_pass:14", "cutoff_low:14"))
_ROUNDING = "Exact but for float32, which leaves some millionths."

TABLE = {
    "margin_map": Experiment(
        config=_MAP,
        quick=dataclasses.replace(_forms.small(_MAP), window_step=5, measure_every=1),
        claims=[
            _claims.MNIST_ACCURACY,
            Claim(
                "rank correlation of the margins with the distance from the lowest frequencies",
                correlation_with_distance,
                "1 where margins depended on the distance alone. As where an order is claimed elsewhere, neighbours "
                "may change places.",
                at_least=0.8,
            ),
            Claim(
                "least margin at the end of an axis over that in the lowest window",
                growth_along_axes,
                "Five times is claimed of the end of the diagonal. These windows are high in one direction only: twice "
                "is less than that, and more than networks differ among themselves.",
                at_least=2,
            ),
            Claim(
                "rank correlation of the margins at the first measured epoch with those at the last",
                correlation_of_first_with_last,
                "What the data let a network use is there from the start; 0.8 as above.",
                at_least=0.8,
            ),
        ],
        note="""Margins of LeNet on MNIST over the whole grid of DCT windows, and over the epochs.

        Claim: margins grow with the distance from the lowest frequencies in every direction, along one axis alone as
        well, and the order of the windows is that of the first epochs. `map.png` shows the medians of the trained
        network, `maps.png` those in training. Corners are two frequencies apart, which leaves neighbouring windows
        three quarters in common.
        """,
    ),
    "robust_spectrum": Experiment(
        config=_SPECTRUM,
        quick=dataclasses.replace(_forms.small(_SPECTRUM), num_epochs=3, measure_every=1),
        claims=[
            Claim(
                "growth of the lowest window's share of the energy in training",
                growth_of_low_energy,
                "More than none; a tenth is what networks of other seeds may differ by.",
                at_least=1.1,
            ),
            Claim(
                "share of the growth of the high windows' margins that is reached halfway through training",
                early_growth,
                "Margins that grew evenly from the first epoch to the tenth would have four ninths of it by the fifth; "
                "those that follow the perturbations fast have more.",
                at_least=0.5,
            ),
        ],
        note="""Where adversarial perturbations of LeNet on MNIST have their energy, after every epoch of training.

        Claim: their spectrum moves to low frequencies while the margins grow, and the margins follow fast.
        `spectrum.png` shows the energy by window and epoch, `history.png` the margins. Perturbations keep pixels in
        [0, 1], which on black backgrounds bounds their frequencies, too.
        """,
    ),
    "filtered_adversarial_low": Experiment(
        config=_LOW,
        quick=dataclasses.replace(_forms.small(_LOW), baseline="mnist_lenet"),
        claims=[
            Claim(
                "least factor of the margins in windows above the band",
                _claims.least_ratio(_claims.above("attack_band")),
                "Half as much again, in every window of the other band: the most by which single windows without "
                "features differ between networks.",
                at_least=1.5,
            ),
        ],
        note="""Margins of LeNet on MNIST after adversarial training with perturbations of low frequencies alone.

        Claim: it changes the boundary where no perturbation ever was, too: margins grow at high frequencies. Pixels may
        leave [0, 1] in training: in a band, black ones would leave perturbations hardly a direction.
        """,
    ),
    "filtered_adversarial_high": Experiment(
        config=_HIGH,
        quick=dataclasses.replace(_forms.small(_HIGH), baseline="mnist_lenet"),
        claims=[
            Claim(
                "largest change of the margins in windows below the band",
                _claims.largest_change(_claims.below("attack_band")),
                "Networks differ among themselves by about a tenth.",
                at_most=0.3,
            ),
        ],
        note="""Margins of LeNet on MNIST after adversarial training with perturbations of high frequencies alone.

        Claim: it changes little. A standard network's margins in that band are many times the perturbations' size
        already, so that they cross no boundary, and the margins at low frequencies stay. Pixels may leave [0, 1] in
        training: in a band, black ones would leave perturbations hardly a direction.
        """,
    ),
    "image_gallery": Experiment(
        config=_GALLERY,
        quick=_GALLERY,  # of the quick form of its baseline
        claims=[
            Claim("energy of flipped images over that of plain ones", energy_left("flip"), _ROUNDING, 0.999, 1.001),
            Claim(
                "share of the energy left by the low-pass filter",
                energy_left("low_pass:14"),
                "Strokes are a few pixels wide: their edges, which need higher frequencies, are a small part of them.",
                at_least=0.9,
            ),
            Claim(
                "share of perturbed images that get another label",
                share_of_changed_labels,
                "All of them: that is what a perturbation is for.",
                at_least=1,
            ),
            Claim(
                "largest share of a perturbation's energy outside its window",
                largest_energy_outside,
                _ROUNDING,
                at_most=1e-4,
            ),
        ],
        note="""The images of MNIST that the experiments make, and the least perturbations by window of the DCT.

        `manipulated.png` shows images with their frequencies flipped, low- and high-passed, and without the low ones;
        `perturbations.png` shows how LeNet is made to change its mind: the margins of `mnist_lenet`, as pictures.
        Claims: flipping loses nothing; a quarter of the frequencies, the lowest, holds nearly all of an image; and
        every perturbation stays in its window and changes the label.
        """,
    ),
}
