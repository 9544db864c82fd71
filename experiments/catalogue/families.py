"""The experiments on families of features, and the number that decides their claims."""

import dataclasses
import itertools
import pathlib

from experiments import families
from experiments.claims import Claim
from experiments.experiment import Experiment
from experiments.families import Families
from hmt_jax.estimates import Estimate


def correlation_with_accuracy(path: pathlib.Path) -> Estimate:
    """Spearman's rank correlation, over all bands, of linear accuracies and median margins."""
    found = families.read(path)
    return families.correlation(found, found.is_band)


def _components(*edges: int) -> tuple[str, ...]:
    """Groups of principal components between edges."""
    return tuple(f"principal-components:{first}:{stop}" for first, stop in itertools.pairwise(edges))


# In images of 28 x 28 pixels, the members of most families have 49 dimensions.
_MNIST = Families(
    baseline="mnist_lenet",
    data="mnist",
    families=(
        "dct-grid:7:7",
        "wavelet-bands:haar:2",
        "fourier-rings:0:4:6:8:10:12:14:20",
        "patches:7",
        *_components(*range(0, 785, 49)),
        "class-means",
    ),
)
# And in those of 32 x 32 pixels and three channels, 192.
_CIFAR10 = Families(
    baseline="cifar10_resnet18_reduced",
    data="cifar10",
    families=(
        "dct-grid:8:8",
        "wavelet-bands:haar:2",
        "fourier-rings:0:4:6:8:10:12:14:16:23",
        "patches:8",
        *_components(0, 192, 384, 768, 1536, 3072),
        "channels",
        "luma-chroma",
        "class-means",
    ),
    num_images=100,
    effort="fast",
)

_TEXT = "rank correlation of a band's linear accuracy and its median margin"

TABLE = {
    "feature_families": Experiment(
        config=_MNIST,
        quick=dataclasses.replace(
            _MNIST,
            families=("dct-grid:14:14", "patches:14", "principal-components:0:49"),
            num_images=20,
            effort="quick",
        ),
        claims=[
            Claim(
                _TEXT,
                correlation_with_accuracy,
                "-1 if a network decided exactly where the data discriminate. As where an order is reversed elsewhere, "
                "bands may change places, and here also because a network sees more than a linear classifier does.",
                at_most=-0.7,
            )
        ],
        note="""Margins of LeNet on MNIST in families of features, beside what a linear classifier makes of each band.

        Claim: the network decides where the data discriminate, and is invariant elsewhere, whatever the family: the
        better a linear classifier does on a band alone, the smaller is the margin in it.

        A band is a member of a family with at most half of all dimensions; the complements of class means are measured,
        but don't count. Margins shrink and accuracies grow with the number of dimensions, which alone would make the
        claim true. So the members of all families have 49 dimensions, a sixteenth of all, where the family allows it:
        all blocks of the DCT, patches and groups of principal components, and the coarser wavelets. `accuracy.png`
        shows the bands, and `margins.png` all members. Bands with a small margin, but of little accuracy, and the other
        way round, are listed: those in the outer thirds of both.
        """,
    ),
    "feature_families_cifar10": Experiment(
        config=_CIFAR10,
        quick=dataclasses.replace(_CIFAR10, families=("dct-grid:16:16", "channels"), num_images=2, effort="quick"),
        claims=[
            Claim(
                _TEXT,
                correlation_with_accuracy,
                "Half of an order. Linear classifiers reach only 40% on CIFAR-10, so that they tell less of what a "
                "network can use than on MNIST.",
                at_most=-0.5,
            )
        ],
        note="""Margins of ResNet-18 on CIFAR-10 in families of features, beside what a linear classifier makes of each.

        Claim: as for `feature_families`, but with half of an order. Most members have 192 dimensions, a sixteenth of
        all. The network is trained in the reduced form, on 10,000 images.
        """,
    ),
}
