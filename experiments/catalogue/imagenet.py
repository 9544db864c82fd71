"""The experiments on ImageNet, on weights and images that are given."""

import dataclasses

from experiments.catalogue import _claims
from experiments.claims import Claim
from experiments.experiment import Experiment
from experiments.given_weights import GivenWeights

RESNET50 = GivenWeights(network="resnet50")
_VGG16 = dataclasses.replace(RESNET50, network="vgg16")
_DENSENET121 = dataclasses.replace(RESNET50, network="densenet121")
_FLIPPED = dataclasses.replace(RESNET50, manipulation="flip", baseline="imagenet_resnet50")
_ROBUST = dataclasses.replace(RESNET50, baseline="imagenet_resnet50")

_ACCURACY = _claims.accuracy(
    0.65,
    "Those of torchvision reach 72% to 76%. Seven points are left for chance, two on a thousand images, and for other "
    "ways to resize; less says that the weights, the images or the order of their classes are others.",
)
_ROBUST_ACCURACY = _claims.accuracy(
    0.5, "Published weights for an L2 radius of 3 reach 58%; eight points less on other images or after less training."
)
_FLIPPED_ACCURACY = _claims.accuracy(
    0.3, "Convolutions are made for plain photographs, and fit flipped ones less well; chance is 0.1%."
)
_GROWS = Claim(
    "margin in the highest window over that in the lowest",
    _claims.highest_over_lowest,
    "As on CIFAR-10: photographs have edges and textures that tell classes apart at higher frequencies than strokes of "
    "a pen; three times is still far beyond the noise.",
    at_least=3,
)


def _quick(config: GivenWeights) -> GivenWeights:
    """The quick form: two small images in four windows. These networks take images of any size from 32 x 32."""
    return dataclasses.replace(config, resize=64, crop=64, num_images=2, max_steps=5)


def _grows(title: str) -> str:
    """The note on margins of a network on plain images."""
    return f"""Margins of {title} on ImageNet along the diagonal of the DCT, with weights that you pass.

    Run it with --weights FILE --images FOLDER.
    Claim: the median margin grows from the low to the high frequencies, at least threefold. FILE is a state dict of
    torchvision's, and FOLDER the validation set, with a folder of images for each class.
    """


TABLE = {
    "imagenet_resnet50": Experiment(RESNET50, _quick(RESNET50), [_ACCURACY, _GROWS], _grows("ResNet-50")),
    "imagenet_vgg16": Experiment(_VGG16, _quick(_VGG16), [_ACCURACY, _GROWS], _grows("VGG-16")),
    "imagenet_densenet121": Experiment(_DENSENET121, _quick(_DENSENET121), [_ACCURACY, _GROWS], _grows("DenseNet-121")),
    "imagenet_resnet50_flipped": Experiment(
        config=_FLIPPED,
        quick=_quick(_FLIPPED),
        claims=[_FLIPPED_ACCURACY, _claims.FLIPS],
        note="""Margins of ResNet-50 on ImageNet with all frequencies flipped, beside those on plain data.

        Run it with --weights FILE --baseline-weights FILE --images FOLDER.
        Claim: the data decide, not the architecture. The margins flip, too: large at low frequencies, small at high
        ones. The first file holds the weights of a network trained on flipped images, less the flip of the mean image;
        the images in FOLDER are plain, and are flipped here. The other weights are those of torchvision.
        """,
    ),
    "imagenet_resnet50_robust": Experiment(
        config=_ROBUST,
        quick=_quick(_ROBUST),
        claims=[_ROBUST_ACCURACY, _claims.LARGER, _claims.LARGER_AT_HIGH],
        note="""Margins of ResNet-50 on ImageNet after adversarial and after standard training.

        Run it with --weights FILE --baseline-weights FILE --images FOLDER.
        Claim: adversarial training enlarges margins in every window, most of all at high frequencies. The paper's
        network is trained against PGD in an L2 ball of radius 3; the other weights are those of torchvision.
        """,
    ),
}
