"""The experiments on MNIST."""

import dataclasses
from collections.abc import Callable

from experiments.catalogue import _claims, _forms
from experiments.experiment import Experiment
from experiments.images import Images

LENET = Images(data="mnist", network="lenet", window_size=8, window_step=1)
RESNET18 = dataclasses.replace(LENET, network="resnet18_mnist")


def robust(config: Images, baseline: str) -> Images:
    """The configuration with adversarial training.

    An epoch costs as much as eight others. After ten, accuracies hardly move.
    """
    return dataclasses.replace(
        config, num_epochs=10, attack="pgd", epsilon=2.0, attack_steps=7, evaluation_steps=40, baseline=baseline
    )


def _experiments(name: str, title: str, plain: Images, quick: Callable[[Images], Images]) -> dict[str, Experiment]:
    """The experiments on one network. Those on adversarial training are compared with ten epochs without attack."""
    flipped = _forms.flipped(plain, name)
    # All frequencies but [0, 14) x [0, 14), a quarter of all, which hold nearly all of what the eye needs.
    high_pass = dataclasses.replace(plain, manipulation="cutoff_low:14", baseline=name)
    short, short_flipped = (dataclasses.replace(each, num_epochs=10, baseline="none") for each in (plain, flipped))
    plain_robust = robust(plain, f"{name}_10_epochs")
    flipped_robust = robust(flipped, f"{name}_flipped_10_epochs")
    return {
        name: Experiment(
            config=plain,
            quick=quick(plain),
            claims=[_claims.MNIST_ACCURACY, _claims.MNIST_GROWS],
            note=f"""Margins of {title} on MNIST along the diagonal of the DCT.

            Claim: the median margin grows from the low to the high frequencies, at least fivefold.
            """,
        ),
        f"{name}_flipped": Experiment(
            config=flipped,
            quick=quick(flipped),
            claims=[_claims.MNIST_ACCURACY, _claims.FLIPS],
            note=f"""Margins of {title} on MNIST with all frequencies flipped, beside those on plain data.

            Claim: the data decide, not the architecture. The margins flip, too: large at low frequencies, small at
            high ones.
            """,
        ),
        f"{name}_high_pass": Experiment(
            config=high_pass,
            quick=quick(high_pass),
            claims=_claims.HIGH_PASS,
            note=f"""Margins of {title} on MNIST without the frequencies [0, 14) x [0, 14), beside those on plain data.

            Claim: the network learns from the band that is left, and has small margins there.
            """,
        ),
        f"{name}_10_epochs": Experiment(
            config=short,
            quick=quick(short),
            claims=[_claims.MNIST_ACCURACY],
            note=f"""Margins of {title} on MNIST after ten epochs, with which adversarial training is compared.""",
        ),
        f"{name}_robust": Experiment(
            config=plain_robust,
            quick=dataclasses.replace(quick(plain_robust), baseline=name),
            claims=[*_claims.MNIST_ROBUSTNESS, _claims.LARGER, _claims.LARGER_AT_HIGH],
            note=f"""Margins of {title} on MNIST after adversarial and after standard training.

            Claim: adversarial training enlarges margins in every window, most of all at high frequencies.
            """,
        ),
        f"{name}_flipped_10_epochs": Experiment(
            config=short_flipped,
            quick=quick(short_flipped),
            claims=[_claims.MNIST_ACCURACY],
            note=f"""Margins of {title} on flipped MNIST after ten epochs, to compare adversarial training with.""",
        ),
        f"{name}_flipped_robust": Experiment(
            config=flipped_robust,
            quick=dataclasses.replace(quick(flipped_robust), baseline=f"{name}_flipped"),
            claims=[*_claims.FLIPPED_MNIST_ROBUSTNESS, _claims.LARGER, _claims.LARGER_AT_LOW],
            note=f"""Margins of {title} on flipped MNIST after adversarial and after standard training.

            Claim: the effect of adversarial training flips along with the data, and is largest at low frequencies.
            Flipped back, perturbed images have pixels in [0, 1]: Dykstra's algorithm projects onto these and the ball.
            """,
        ),
    }


TABLE = {
    **_experiments("mnist_lenet", "LeNet", LENET, _forms.small),
    **_experiments("mnist_resnet18", "ResNet-18", RESNET18, _forms.deep),
}
