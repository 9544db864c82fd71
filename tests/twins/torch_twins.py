"""The networks of `hmt_jax.models` as PyTorch modules, from their papers, with the names of tensors of public code.

CIFAR forms have the names of kuangliu/pytorch-cifar, the others those of torchvision. All work on images (N, C, H, W).
"""

import itertools
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn
from torch.overrides import TorchFunctionMode

# The tests share two cores among their processes: more threads wait for each other.
torch.set_num_threads(1)

RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
VGGS = {11: "1 1 2 2 2", 13: "2 2 2 2 2", 16: "2 2 3 3 3", 19: "2 2 4 4 4"}
DENSENETS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


def build(name: str, channels: int, num_classes: int) -> nn.Module:
    """The twin of an architecture of `hmt_jax.models.names()`, such as vgg16_bn_cifar, in evaluation mode."""
    family, *form = name.split("_")
    depth = int("".join(filter(str.isdigit, family)) or 0)
    if name == "lenet":
        network = lenet(channels, num_classes)
    elif family.startswith("resnet"):
        network = ResNet(depth, channels, num_classes, is_cifar="cifar" in form)
    elif family.startswith("vgg"):
        network = VGG(depth, channels, num_classes, has_norm="bn" in form, is_cifar="cifar" in form)
    else:
        network = (CifarDenseNet if "cifar" in form else DenseNet)(depth, channels, num_classes)
    return network.eval()


def lenet(channels, num_classes):
    """For images of 28 x 28."""
    first = [("conv1", nn.Conv2d(channels, 6, 5, padding=2)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(2))]
    second = [("conv2", nn.Conv2d(6, 16, 5)), ("relu2", nn.ReLU()), ("pool2", nn.MaxPool2d(2))]
    hidden = [("flat", nn.Flatten()), ("fc1", nn.Linear(400, 120)), ("relu3", nn.ReLU())]
    last = [("fc2", nn.Linear(120, 84)), ("relu4", nn.ReLU()), ("fc3", nn.Linear(84, num_classes))]
    return nn.Sequential(OrderedDict([*first, *second, *hidden, *last]))


class Block(nn.Module):
    def __init__(self, num_in, width, stride, sizes, shortcut):
        super().__init__()
        num_out = width * (4 if len(sizes) == 3 else 1)
        widths = [num_in] + [width] * (len(sizes) - 1) + [num_out]
        for i, size in enumerate(sizes):
            # The stride is that of the first 3 x 3 convolution.
            steps = stride if i == sizes.index(3) else 1
            conv = nn.Conv2d(widths[i], widths[i + 1], size, steps, size // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.num_convs, self.shortcut_name = len(sizes), shortcut
        self.add_module(shortcut, nn.Sequential())
        if stride != 1 or num_in != num_out:
            conv = nn.Conv2d(num_in, num_out, 1, stride, bias=False)
            self.add_module(shortcut, nn.Sequential(conv, nn.BatchNorm2d(num_out)))

    def forward(self, images):
        x = images
        for i in range(1, self.num_convs + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = x.relu() if i < self.num_convs else x
        return (x + getattr(self, self.shortcut_name)(images)).relu()


class ResNet(nn.Module):
    def __init__(self, depth, channels, num_classes, *, is_cifar):
        super().__init__()
        self.is_cifar, self.head = is_cifar, "linear" if is_cifar else "fc"
        stem = {"kernel_size": 3, "padding": 1} if is_cifar else {"kernel_size": 7, "stride": 2, "padding": 3}
        self.conv1 = nn.Conv2d(channels, 64, **stem, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        sizes = (3, 3) if depth < 50 else (1, 3, 1)
        num_in = 64
        for i, num_blocks in enumerate(RESNETS[depth]):
            blocks = []
            for j in range(num_blocks):
                stride = 2 if i and not j else 1
                blocks.append(Block(num_in, 64 * 2**i, stride, sizes, "shortcut" if is_cifar else "downsample"))
                num_in = 64 * 2**i * (4 if depth >= 50 else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.add_module(self.head, nn.Linear(num_in, num_classes))

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = x if self.is_cifar else F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.avg_pool2d(x, 4) if self.is_cifar else F.adaptive_avg_pool2d(x, 1)
        return getattr(self, self.head)(x.flatten(1))


class VGG(nn.Module):
    def __init__(self, depth, channels, num_classes, *, has_norm=False, is_cifar=False, num_hidden=()):
        super().__init__()
        layers, num_in = [], channels
        for width, num_convs in zip((64, 128, 256, 512, 512), VGGS[depth].split(), strict=True):
            for _ in range(int(num_convs)):
                norm = [nn.BatchNorm2d(width)] if has_norm else []
                layers += [nn.Conv2d(num_in, width, 3, padding=1), *norm, nn.ReLU()]
                num_in = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.Identity() if is_cifar else nn.AdaptiveAvgPool2d(7)
        widths = [512, *num_hidden] if is_cifar else [512 * 49, 4096, 4096]
        layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU(), nn.Dropout())]
        last = nn.Linear(widths[-1], num_classes)
        self.classifier = nn.Sequential(*layers, last) if layers else last

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class DenseNet(nn.Module):
    def __init__(self, depth, channels, num_classes):
        super().__init__()
        stem = [("conv0", nn.Conv2d(channels, 64, 7, 2, 3, bias=False)), ("norm0", nn.BatchNorm2d(64))]
        self.features = nn.Sequential(OrderedDict([*stem, ("relu0", nn.ReLU()), ("pool0", nn.MaxPool2d(3, 2, 1))]))
        num_in = 64
        for i, num_layers in enumerate(DENSENETS[depth], 1):
            layers = OrderedDict((f"denselayer{j + 1}", dense_layer(num_in + 32 * j)) for j in range(num_layers))
            self.features.add_module(f"denseblock{i}", DenseBlock(layers))
            num_in += 32 * num_layers
            if i < 4:
                self.features.add_module(f"transition{i}", transition(num_in, "norm"))
                num_in //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(num_in))
        self.classifier = nn.Linear(num_in, num_classes)

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x).relu(), 1).flatten(1))


class CifarDenseNet(nn.Module):
    def __init__(self, depth, channels, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        num_in = 64
        for i, num_layers in enumerate(DENSENETS[depth], 1):
            layers = [(str(j), dense_layer(num_in + 32 * j, "bn")) for j in range(num_layers)]
            self.add_module(f"dense{i}", DenseBlock(OrderedDict(layers), is_new_first=True))
            num_in += 32 * num_layers
            if i < 4:
                self.add_module(f"trans{i}", transition(num_in, "bn"))
                num_in //= 2
        self.bn = nn.BatchNorm2d(num_in)
        self.linear = nn.Linear(num_in, num_classes)

    def forward(self, x):
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense4(self.trans3(self.dense3(self.trans2(self.dense2(x)))))
        return self.linear(F.avg_pool2d(self.bn(x).relu(), 4).flatten(1))


class DenseBlock(nn.Sequential):
    def __init__(self, layers, *, is_new_first=False):
        super().__init__(layers)
        self.is_new_first = is_new_first

    def forward(self, x):
        for layer in self:
            x = torch.cat([layer(x), x] if self.is_new_first else [x, layer(x)], 1)
        return x


def dense_layer(num_in, norm="norm"):
    first = [
        (f"{norm}1", nn.BatchNorm2d(num_in)),
        ("relu1", nn.ReLU()),
        ("conv1", nn.Conv2d(num_in, 128, 1, bias=False)),
    ]
    conv = nn.Conv2d(128, 32, 3, padding=1, bias=False)
    return nn.Sequential(
        OrderedDict([*first, (f"{norm}2", nn.BatchNorm2d(128)), ("relu2", nn.ReLU()), ("conv2", conv)])
    )


def transition(num_in, norm):
    conv = nn.Conv2d(num_in, num_in // 2, 1, bias=False)
    layers = [(norm, nn.BatchNorm2d(num_in)), ("relu", nn.ReLU()), ("conv", conv), ("pool", nn.AvgPool2d(2))]
    return nn.Sequential(OrderedDict(layers))


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics of batch norm, none at its default, that keep activations of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.7, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.1, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                # He's, a little less: residual networks add up.
                module.weight.normal_(0, (1.5 / module.weight[0].numel()) ** 0.5, generator=generator)
                if module.weight.numel() > 10**7:
                    # In the order in memory that Flax has them in: VGG's hundred millions take seconds to reorder.
                    module.weight.data = module.weight.data.reshape(module.weight.shape[::-1]).T
                if module.bias is not None:
                    module.bias.normal_(0, 0.2, generator=generator)
    return network


def move_off_kinks(network: nn.Module, images: torch.Tensor, distance: float) -> float:
    """Moves biases, mostly by less than 2 `distance`, so that no input of a ReLU is nearer to zero than `distance`.

    Rounding then turns no unit on or off on these images, and gradients can be compared as strictly as logits.

    Returns:
      By how much the first two values of a window differ at least, over all windows of max-pooling with a positive
      one: rounding that is smaller leaves the gradient in its place.
    """
    with torch.no_grad(), _OffKinks(distance) as mode:
        network(images)
    return mode.least_gap


class _OffKinks(TorchFunctionMode):
    """While a network runs, shifts the inputs of each ReLU by the last bias before it."""

    def __init__(self, distance):
        super().__init__()
        self.distance, self.least_gap, self.bias = distance, math.inf, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.batch_norm, F.conv2d, F.linear):
            bias = kwargs["bias"] if "bias" in kwargs else args[2]
            self.bias = self.bias if bias is None else bias
        elif func in (F.relu, torch.Tensor.relu):
            shift = _to_gaps(args[0], self.distance)
            self.bias += shift
            args = (args[0] + shift.reshape(-1, *[1] * (args[0].ndim - 2)), *args[1:])
        elif func.__name__ == "max_pool2d":
            self.least_gap = min(self.least_gap, _least_gap(*args, **kwargs))
        return func(*args, **kwargs)


def _to_gaps(x, distance):
    """The least shift of each channel of x (N, C, ...) that moves all values away from zero."""
    values = x.transpose(0, 1).flatten(1)
    shift, is_near = torch.zeros_like(values[:, 0]), (values.abs() < distance).any(1)
    if is_near.any():
        shift[is_near] = _to_gaps_near_zero(values[is_near].sort(1).values, distance)
    return shift


def _to_gaps_near_zero(values, distance):
    """The same for channels (C, numbers in ascending order) whose values must move."""
    # Zero may come to lie between two neighbouring values, or beyond all.
    lower = F.pad(values + distance, (1, 0), value=-math.inf)
    upper = F.pad(values - distance, (0, 1), value=math.inf)
    zeros = torch.where(lower <= upper, torch.zeros_like(lower).clamp(lower, upper), math.inf)
    return -zeros.gather(1, zeros.abs().argmin(1, keepdim=True))[:, 0]


def _least_gap(x, size, stride=None, padding=0, **_):
    windows = F.pad(x, [padding] * 4, value=-1).unfold(2, size, stride or size).unfold(3, size, stride or size)
    first, second = windows.flatten(4).topk(2).values.unbind(-1)
    return (first - second)[first > 0].min().item()
