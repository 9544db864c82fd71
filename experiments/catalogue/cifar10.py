"""The experiments on CIFAR-10."""

import dataclasses

from experiments.catalogue import _claims, _forms
from experiments.experiment import Experiment
from experiments.images import Images

RESNET18 = Images(data="cifar10", network="resnet18_cifar", window_size=8, window_step=2)
# For two CPU cores.
_REDUCED = dataclasses.replace(RESNET18, num_train=10_000, num_test=1000, num_epochs=5, batch_size=64, num_images=100)
# The paper's VGG-19: without batch norm, and with two hidden layers.
VGG19 = dataclasses.replace(RESNET18, network="vgg19_cifar", num_hidden=(512, 512))
DENSENET121 = dataclasses.replace(RESNET18, network="densenet121_cifar")


def robust(config: Images, baseline: str) -> Images:
    """The configuration with adversarial training."""
    return dataclasses.replace(
        config, attack="pgd", epsilon=1.0, attack_steps=7, evaluation_steps=40, baseline=baseline
    )


def _experiments(name: str, title: str, plain: Images) -> dict[str, Experiment]:
    """The experiments on one network."""
    flipped = _forms.flipped(plain, name)
    # The frequencies [0, 16) x [0, 16) only, a quarter of all.
    low_pass = dataclasses.replace(plain, manipulation="low_pass:16", baseline=name)
    plain_robust, flipped_robust = robust(plain, name), robust(flipped, f"{name}_flipped")
    return {
        name: Experiment(
            config=plain,
            quick=_forms.deep(plain),
            claims=[_claims.CIFAR10_ACCURACY, _claims.CIFAR10_GROWS],
            note=f"""Margins of {title} on CIFAR-10 along the diagonal of the DCT.

            Claim: the median margin grows from the low to the high frequencies, at least threefold.
            """,
        ),
        f"{name}_flipped": Experiment(
            config=flipped,
            quick=_forms.deep(flipped),
            claims=[_claims.FLIPPED_CIFAR10_ACCURACY, _claims.FLIPS, _claims.MIRRORS],
            note=f"""Margins of {title} on CIFAR-10 with all frequencies flipped, beside those on plain data.

            Claim: the data decide, not the architecture. The margins flip, too: large at low frequencies, small at
            high ones.
            """,
        ),
        f"{name}_low_pass": Experiment(
            config=low_pass,
            quick=_forms.deep(low_pass),
            claims=_claims.LOW_PASS,
            note=f"""Margins of {title} on CIFAR-10 with the frequencies [0, 16) x [0, 16) only, beside plain data.

            Claim: the margins grow in the band that was removed, and stay the same below it.
            """,
        ),
        f"{name}_robust": Experiment(
            config=plain_robust,
            quick=_forms.deep(plain_robust),
            claims=[*_claims.CIFAR10_ROBUSTNESS, _claims.LARGER, _claims.LARGER_AT_HIGH],
            note=f"""Margins of {title} on CIFAR-10 after adversarial and after standard training.

            Claim: adversarial training enlarges margins in every window, most of all at high frequencies.
            """,
        ),
        f"{name}_flipped_robust": Experiment(
            config=flipped_robust,
            quick=_forms.deep(flipped_robust),
            claims=[*_claims.FLIPPED_CIFAR10_ROBUSTNESS, _claims.LARGER, _claims.LARGER_AT_LOW],
            note=f"""Margins of {title} on flipped CIFAR-10 after adversarial and after standard training.

            Claim: the effect of adversarial training flips along with the data, and is largest at low frequencies.
            Flipped back, perturbed images have pixels in [0, 1]: Dykstra's algorithm projects onto these and the ball.
            """,
        ),
    }


TABLE = {
    **_experiments("cifar10_resnet18", "ResNet-18", RESNET18),
    "cifar10_resnet18_reduced": Experiment(
        config=_REDUCED,
        quick=_forms.deep(_REDUCED),
        claims=[_claims.CIFAR10_GROWS],
        note="""Margins of ResNet-18 on CIFAR-10 after little training on 10,000 images, for `feature_families_cifar10`.

        Claim: the median margin grows from the low to the high frequencies, at least threefold.
        """,
    ),
    **_experiments("cifar10_vgg19", "VGG-19", VGG19),
    **_experiments("cifar10_densenet121", "DenseNet-121", DENSENET121),
}
