"""The paper's networks against PyTorch: logits, gradients, margins, and weights in and out."""

import argparse
import functools
import itertools
import json
import math
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import scipy.fft
import torch
import torch_twins
from flax import nnx
from helpers import slow_except
from safetensors.numpy import load_file, save_file

import hmt_jax
from hmt_jax import models, solvers, subspaces
from hmt_jax.classifiers import as_pytree
from hmt_jax.models import _create, _layers, densenet, resnet

MEAN, STD = np.array([0.4, 0.5, 0.3]), np.array([0.2, 0.3, 0.25])

# Two shapes (N, height, width) of images for each form. The second ones are neither square nor multiples of any stride,
# and leave rows over in poolings; 1 and 2 pixels of features are less than VGG's 7 windows. The MNIST form of ResNet is
# the ImageNet form for one channel.
SHAPES = {
    "resnet": [(2, 32, 32), (1, 21, 38)],
    "resnet_mnist": [(1, 28, 28)],
    "resnet_cifar": [(2, 32, 32), (1, 25, 35)],
    "vgg": [(2, 32, 32), (1, 33, 65)],
    "vgg_cifar": [(2, 32, 32), (1, 33, 47)],
    "densenet": [(2, 32, 32), (1, 29, 50)],
    "densenet_cifar": [(2, 32, 32), (1, 33, 42)],
}
# The least networks that have all the parts of the others: the parts of a form for one channel are those for three, and
# the convolutions of an ImageNet form of VGG are those of its CIFAR form.
SHALLOW = (
    *("resnet18", "resnet18_cifar", "resnet18_mnist", "resnet50", "resnet50_cifar"),
    *("vgg11_bn", "vgg11_bn_cifar", "densenet121", "densenet121_cifar"),
)
# Those of them that consist of many equal parts are compared with few, which is what compiling takes its time for.
FEW = (2, 2, 2, 2)
# Deep networks, at least one of each family: what is left to compare is how many parts there are, and in what order. Of
# the others, the tests compare the tensors alone, unless all twins are asked for.
DEEP = ("resnet34", "resnet34_cifar", "resnet101", "densenet169", *(f"vgg{n}_cifar" for n in (11, 13, 16, 19)))
# A hundred times what float32 leaves of activations of the order of 1, and still less than most gaps among them.
KINK_DISTANCE = 1e-5
TOLERANCES = {np.float64: 1e-10, np.float32: 1e-4}


def form(name):
    return re.sub(r"\d+|_bn", "", name)


def all_names():
    """Every network but those of `test_models.py`; those that take long to compile are slow."""
    return slow_except([name for name in models.names() if form(name) in SHAPES], "resnet18_cifar", "vgg11_bn_cifar")


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


def twin_of(name, channels=3, num_classes=7, seed=0):
    """A PyTorch network with random weights in float32."""
    with torch.device("meta"):
        network = torch_twins.build(name, channels, num_classes)
    return torch_twins.randomize(network.to_empty(device="cpu"), seed).requires_grad_(False)


@functools.cache
def state_of_twin(name):
    """The weights of `twin_of(name)` in PyTorch, and those of the imported network."""
    network = twin_of(name)
    return network.state_dict(), nnx.state(imported(name, network, (*size_of(name), 3)))


def imported(name, network, image_shape, **options):
    channels = image_shape[-1]
    state_dict = network if isinstance(network, dict) else network.state_dict()
    return models.from_torch(
        name, state_dict, image_shape=image_shape, mean=MEAN[:channels], std=STD[:channels], **options
    )


def torch_input(images):
    channels = images.shape[-1]
    return torch.tensor(np.moveaxis((images - MEAN[:channels]) / STD[:channels], -1, 1))


def torch_logits_and_gradients(network, images):
    """In float64: logits, and the gradients of their sum with weights 1, 2, ... over the normalised images."""
    normalized = torch_input(images).requires_grad_()
    logits = network(normalized)
    (logits * torch.arange(1, logits.shape[1] + 1)).sum().backward()
    return logits.detach().numpy(), np.moveaxis(normalized.grad.numpy(), 1, -1) / STD[: images.shape[-1]]


def logits_and_gradients(classifier, images):
    logits, pull_back = jax.vjp(classifier, images)
    weights = jnp.broadcast_to(jnp.arange(1, logits.shape[1] + 1, dtype=logits.dtype), logits.shape)
    return logits, pull_back(weights)[0]


# Large convolutions in float64 are loops of XLA's code on CPU: with gradients, optimising it takes less than it saves.
LOOPED = ("resnet_cifar", "vgg", "vgg_cifar")
FOUND = jax.jit(logits_and_gradients)
FOUND_IN_LOOPS = jax.jit(
    logits_and_gradients,
    compiler_options={"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False},
)
LOGITS = jax.jit(lambda classifier, images: classifier(images))


def images_off_kinks(network, *shape):
    """Images on which rounding switches no ReLU and no maximum, after biases of the network have moved a little."""
    for seed in range(100):
        images = random_images(*shape, seed=seed)
        if torch_twins.move_off_kinks(network, torch_input(images), KINK_DISTANCE) > KINK_DISTANCE / 2:
            return images
    raise AssertionError("maxima nearly tie in all images")


def in_dtype(name, network, image_shape, dtype, **options):
    """The imported network, which has as many parameters as the one in PyTorch."""
    weights = {key: value.numpy().astype(dtype, copy=False) for key, value in network.state_dict().items()}
    classifier = imported(name, weights, image_shape, num_classes=7, **options)
    assert num_parameters(classifier.network) == sum(parameter.numel() for parameter in network.parameters())
    return as_pytree(classifier)


def assert_close(ours, theirs, dtype):
    assert ours.dtype == dtype
    # Relative to the largest: every value is a sum of thousands of terms of that order.
    scale = np.abs(theirs).max()
    assert 1e-3 < scale < 1e3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCES[dtype] * scale)


def check_logits_and_gradients(name, network, images, dtype):
    classifier = in_dtype(name, network, images.shape[1:], dtype)
    compiled = FOUND_IN_LOOPS if dtype == np.float64 and form(name) in LOOPED else FOUND
    found = compiled(classifier, jnp.asarray(images, dtype))
    for ours, theirs in zip(found, torch_logits_and_gradients(network, images), strict=True):
        assert_close(ours, theirs, dtype)


def test_weights_in_bfloat16_stay_so():
    network = twin_of("lenet", channels=1)
    expected = {key: value.float().numpy() for key, value in network.bfloat16().state_dict().items()}
    found = models.to_torch(imported("lenet", network, (28, 28, 1), num_classes=7))
    for key, array in found.items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array.astype(np.float32), expected[key])


def check_logits(name, network, images, **options):
    classifier = in_dtype(name, network, images.shape[1:], np.float64, **options)
    assert_close(LOGITS(classifier, jnp.asarray(images)), network(torch_input(images)).numpy(), np.float64)


def check_weights_fit(name, image_shape):
    """Tensors of the names and shapes of PyTorch's are all that the network has, and all that it takes."""
    with torch.device("meta"):
        network = torch_twins.build(name, image_shape[2], 7)
    weights = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in network.state_dict().items()}
    classifier = imported(name, weights, image_shape, num_classes=7)
    assert num_parameters(classifier.network) == sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def kept_by_no_cache():
    """For large programs that run once: they are not written into the cache, which takes as long as lowering them."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, math.inf)
    yield
    jax.config.update(name, before)


@pytest.mark.usefixtures("kept_by_no_cache")
@pytest.mark.parametrize("name", all_names())
def test_networks_agree_with_pytorch(name, request, monkeypatch, x64):
    channels = 1 if name.endswith("mnist") else 3
    pairs = list(itertools.product(SHAPES[form(name)], TOLERANCES))
    if not request.config.getoption("--all-twins"):
        if name not in (*SHALLOW, *DEEP):
            return check_weights_fit(name, (*pairs[-1][0][1:], channels))
        if name in DEEP:
            return check_logits(name, twin_of(name, channels).double(), random_images(*pairs[-1][0], channels))
        if name.startswith(("resnet50", "densenet121")):
            check_weights_fit(name, (*pairs[-1][0][1:], channels))
            for table in (resnet.NUM_BLOCKS, torch_twins.RESNETS):
                monkeypatch.setitem(table, 50, FEW)
            for table in (densenet.NUM_LAYERS, torch_twins.DENSENETS):
                monkeypatch.setitem(table, 121, FEW)
        pairs = [pairs[0], pairs[-1]]
    network = twin_of(name, channels).double()
    for shape, dtype in pairs:
        check_logits_and_gradients(name, network, images_off_kinks(network, *shape, channels), dtype)


@pytest.mark.slow
def test_the_vgg_of_the_paper_has_two_hidden_layers(x64):
    network = torch_twins.VGG(19, 3, 7, is_cifar=True, num_hidden=(512, 512))
    network = torch_twins.randomize(network).double().eval().requires_grad_(False)
    options = {"num_hidden": (512, 512)}
    check_logits("vgg19_cifar", network, random_images(2, 32, 32, 3), **options)
    assert set(models.to_torch(imported("vgg19_cifar", network, (32, 32, 3), **options))) == set(network.state_dict())


def window_basis(corner, size, image_shape):
    """(D, size * size * channels), by SciPy: the images whose DCT is 1 at one frequency of one channel."""
    basis = []
    for row, column, channel in np.ndindex(size, size, image_shape[2]):
        spectrum = np.zeros(image_shape)
        spectrum[corner + row, corner + column, channel] = 1
        basis.append(scipy.fft.idctn(spectrum, axes=(0, 1), norm="ortho").ravel())
    return np.stack(basis, 1)


def torch_deepfool(network, image, basis, num_candidates, overshoot=0.02, max_steps=100):
    """DeepFool on one image in the span of a basis, as plainly as it can be: margin, labels, steps."""
    image, basis = torch.tensor(image), torch.tensor(basis)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def logits_at(z):
        pixels = image + (basis @ z).reshape(image.shape)
        return network(((pixels - mean) / std).permute(2, 0, 1)[None])[0]

    z = torch.zeros(basis.shape[1], dtype=torch.float64)
    label, *others = logits_at(z).argsort(descending=True)[:num_candidates].tolist()
    for num_steps in range(1, max_steps + 1):
        z.requires_grad_()
        logits = logits_at(z)
        steps = []
        for other in others:
            (normal,) = torch.autograd.grad(logits[other] - logits[label], z, retain_graph=True)
            distance = (logits[other] - logits[label]).abs() / normal.norm()
            steps.append((distance.item(), normal / normal.norm()))
        distance, direction = min(steps, key=lambda step: step[0])
        z = z.detach() + max(distance, 1e-4) * direction
        adversarial_label = logits_at((1 + overshoot) * z).argmax().item()
        if adversarial_label != label:
            return (1 + overshoot) * z.norm().item(), label, adversarial_label, num_steps
    raise AssertionError("no boundary found")


@pytest.mark.slow
def test_margins_of_an_imported_network_are_those_of_a_plain_loop_in_pytorch(x64):
    image_shape, num_candidates = (16, 16, 3), 3
    network = twin_of("resnet18").double()
    images = random_images(2, *image_shape)
    windows = [subspaces.dct_window(image_shape, corner, corner, size=4) for corner in (0, 10)]
    result = hmt_jax.measure_margins(
        imported("resnet18", network, image_shape),
        images,
        windows,
        solvers.DeepFool(num_candidates=num_candidates),
        devices=jax.devices()[:1],
    )
    for r, corner in enumerate((0, 10)):
        basis = window_basis(corner, 4, image_shape)
        for n in range(2):
            margin, *labels_and_steps = torch_deepfool(network, images[n], basis, num_candidates)
            assert [result.label[r, n], result.adversarial_label[r, n], result.num_steps[r, n]] == labels_and_steps
            # Some steps of a network that amplifies rounding by some orders of magnitude.
            np.testing.assert_allclose(result.margin[r, n], margin, rtol=1e-8)


SMALL_NAMES = ["lenet", "resnet18_cifar", "resnet18", "vgg11_bn_cifar", "vgg11_cifar"]


def size_of(name):
    return (28, 28) if name == "lenet" else SHAPES[form(name)][0][1:]


@pytest.mark.parametrize(
    "name", slow_except([*SMALL_NAMES, "densenet121", "densenet121_cifar"], "lenet", "resnet18_cifar")
)
def test_weights_come_back_to_pytorch_as_they_were(name):
    network = twin_of(name)
    classifier = imported(name, network, (*size_of(name), 3))
    state_dict = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    exported = models.to_torch(classifier)
    assert set(exported) == set(state_dict)
    for key, value in exported.items():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, state_dict[key].numpy(), err_msg=key)
    # PyTorch itself is content with them, too.
    twin_of(name, seed=1).load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()})


def check_save_and_load(file, classifier, architecture):
    models.save(file, classifier, architecture=architecture)
    loaded, _ = models.load(file)
    assert nnx.split(loaded)[0] == nnx.split(classifier)[0]
    assert jax.tree.structure(nnx.state(loaded)) == jax.tree.structure(nnx.state(classifier))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(classifier))


@pytest.mark.parametrize("name", slow_except([*SMALL_NAMES, "resnet18_mnist"], "lenet", "resnet18_cifar"))
def test_save_and_load(name, tmp_path):
    image_shape = (*size_of(name), 3)
    architecture = {"name": name, "image_shape": image_shape, "num_classes": 7}
    check_save_and_load(tmp_path / "it.safetensors", imported(name, twin_of(name), image_shape), architecture)


def test_save_and_load_with_hidden_layers_and_dropout(tmp_path):
    network = torch_twins.randomize(torch_twins.VGG(11, 1, 3, is_cifar=True, num_hidden=(6, 5)))
    classifier = imported("vgg11_cifar", network, (32, 32, 1))  # their widths are those of the weights
    architecture = {"name": "vgg11_cifar", "image_shape": (32, 32, 1), "num_classes": 3, "num_hidden": [6, 5]}
    check_save_and_load(tmp_path / "it.safetensors", classifier, architecture)


def test_a_file_that_does_not_fit_its_architecture_is_refused(tmp_path):
    classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=3)
    architecture = {"name": "logistic", "image_shape": (2, 2, 1), "num_classes": 3}
    file = tmp_path / "it.safetensors"
    models.save(file, classifier, architecture=architecture)
    header = json.dumps({"architecture": {**architecture, "num_classes": 4}})
    save_file(load_file(file), file, metadata={"hmt_jax": header})
    with pytest.raises(ValueError, match=r"the arrays of .* do not fit its architecture"):
        models.load(file)


def renamed(state_dict, *substitutions):
    """A state dict under other names, which must differ for at least one tensor."""
    names = {}
    for name in state_dict:
        names[name] = name
        for pattern, replacement in substitutions:
            names[name] = re.sub(pattern, replacement, names[name])
    assert any(new != old for old, new in names.items())
    return {names[name]: value for name, value in state_dict.items()}


def to_kuangliu(match):
    return f"dense{match[1]}.{int(match[2]) - 1}."


TORCHVISION_TO_KUANGLIU = (
    (r"^features\.conv0", "conv1"),
    (r"^features\.norm0", "bn1"),
    (r"^features\.norm5", "bn"),
    (r"^features\.denseblock(\d)\.denselayer(\d+)\.", to_kuangliu),
    (r"^(dense\d\.\d+)\.norm", r"\1.bn"),
    (r"^features\.transition(\d)\.norm", r"trans\1.bn"),
    (r"^features\.transition(\d)\.conv", r"trans\1.conv"),
    (r"^classifier", "linear"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "substitutions"),
    [
        ("resnet18", [(r"downsample", "shortcut"), (r"^fc\.", "linear.")]),
        ("resnet18_cifar", [(r"shortcut", "downsample"), (r"^linear\.", "fc.")]),
        ("resnet18_mnist", [(r"^fc\.", "linear.")]),
        pytest.param("densenet121", [(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3")], marks=pytest.mark.slow),
        pytest.param("densenet121", TORCHVISION_TO_KUANGLIU, marks=pytest.mark.slow),
        ("resnet18_cifar", [(r"^", "module.model."), (r"(layer\d)\.", r"\1._orig_mod.")]),
        ("vgg11_cifar", [(r"^features\.", "features.module.")]),
    ],
)
def test_other_names_of_tensors(name, substitutions):
    weights, expected = state_of_twin(name)
    state = nnx.state(imported(name, renamed(weights, *substitutions), (*size_of(name), 3)))
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_two_names_of_one_tensor_must_hold_the_same_numbers():
    weights = dict(twin_of("resnet18_cifar").state_dict())
    expected = nnx.state(imported("resnet18_cifar", weights, (32, 32, 3)))
    weights |= {"fc.weight": weights["linear.weight"], "module.linear.bias": weights["linear.bias"]}
    state = nnx.state(imported("resnet18_cifar", weights, (32, 32, 3)))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    weights["fc.weight"] = weights["linear.weight"] + 1
    with pytest.raises(
        ValueError,
        match=r"holds linear\.weight and fc\.weight, which are two names of one array, but their numbers differ: leave",
    ):
        imported("resnet18_cifar", weights, (32, 32, 3))


def test_faults_of_a_state_dict_are_listed_by_its_own_names():
    weights = renamed(twin_of("resnet18_cifar").state_dict(), ("shortcut", "downsample"), (r"^linear\.", "fc."))
    del weights["layer2.0.downsample.1.running_var"], weights["bn1.bias"]
    weights["fc.weight"] = weights["fc.weight"].T
    weights["projector.weight"] = torch.zeros(3)
    with pytest.raises(
        ValueError,
        match=r"^the state dict does not fit resnet18_cifar:\n  resnet18_cifar +the state dict\n"
        r"  fc\.weight \(7, 512\) +fc\.weight \(512, 7\)\n"
        r"  bn1\.bias \(64,\) +-\n"
        r"  layer2\.0\.downsample\.1\.running_var \(128,\) +-\n"
        r"  - +projector\.weight \(3,\)$",
    ):
        imported("resnet18_cifar", weights, (32, 32, 3), num_classes=7)


def test_parameters_that_pytorch_goes_on_training_are_copied():
    network = torch_twins.randomize(torch_twins.build("lenet", 1, 3))
    classifier = imported("lenet", dict(network.named_parameters()), (28, 28, 1))
    before = models.to_torch(classifier)
    with torch.no_grad():
        network.fc3.weight.add_(1)
        network.fc3.bias.add_(1)
    for name, array in models.to_torch(classifier).items():
        np.testing.assert_array_equal(array, before[name])


def write(file, state_dict):
    arrays = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    if file.suffix == ".safetensors":
        save_file(arrays, file)
    elif file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        torch.save(state_dict, file, _use_new_zipfile_serialization=file.suffix != ".t7")


@pytest.mark.parametrize(
    ("suffix", "path_type"),
    [
        ("safetensors", str),
        ("npz", str),
        ("pt", str),
        ("pth", pathlib.Path),
        ("t7", pathlib.Path),
        ("ckpt", pathlib.Path),
        ("pth.tar", pathlib.Path),
        ("bin", pathlib.Path),
    ],
)
def test_files(suffix, path_type, tmp_path):
    weights = twin_of("lenet", channels=1).state_dict()
    file = tmp_path / f"weights.{suffix}"
    write(file, weights)
    classifier = models.from_torch("lenet", path_type(file), image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))
    for name, array in models.to_torch(classifier).items():
        np.testing.assert_array_equal(array, weights[name].numpy())


@pytest.mark.parametrize("key", ["state_dict", "network"])
def test_wrapped_state_dicts(key, tmp_path):
    network = twin_of("resnet18_cifar")
    checkpoint = {key: network.state_dict(), "acc": 95.0, "epoch": 7, "args": argparse.Namespace(arch="resnet18")}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    classifier = models.from_torch(
        "resnet18_cifar", tmp_path / "checkpoint.pth", image_shape=(32, 32, 3), mean=MEAN, std=STD
    )
    np.testing.assert_array_equal(models.to_torch(classifier)["conv1.weight"], network.conv1.weight.detach().numpy())


def test_averaged_weights_in_lists_of_pytorchs_are_not_passed_over_in_silence(tmp_path):
    weights = twin_of("lenet", channels=1).state_dict()
    statistics = {"image_shape": (28, 28, 1), "mean": (0.1,), "std": (0.3,)}
    average = torch.nn.ParameterList(value + 1 for value in weights.values())
    message = r"^'ema' holds arrays without names, .*; to take the others, pass weights='model'$"
    with pytest.raises(ValueError, match=message):
        models.from_torch("lenet", {"model": weights, "ema": average}, **statistics)
    torch.save({"model": weights, "ema": average.state_dict()}, tmp_path / "it.pt")
    with pytest.raises(ValueError, match=message):
        models.from_torch("lenet", tmp_path / "it.pt", **statistics)
    models.from_torch("lenet", tmp_path / "it.pt", **statistics, weights="model")


@pytest.mark.slow
def test_the_layout_of_the_public_robust_checkpoints():
    """MadryLab's: the network twice, its normalisation within, and the state of an optimizer beside it."""
    network = twin_of("resnet18")
    prefixes = "module.model.", "module.attacker.model."
    model = {prefix + name: value for prefix in prefixes for name, value in network.state_dict().items()}
    for normalizer in ("module.normalizer", "module.attacker.normalize"):
        for name, value in (("new_mean", MEAN), ("new_std", STD)):
            model[f"{normalizer}.{name}"] = torch.tensor(value, dtype=torch.float32)[:, None, None]
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(2)}}}
    checkpoint = {"model": model, "optimizer": momentum, "epoch": 90}
    state = nnx.state(imported("resnet18", checkpoint, (64, 64, 3)))
    jax.tree.map(np.testing.assert_array_equal, state, nnx.state(imported("resnet18", network, (64, 64, 3))))

    model["module.attacker.normalize.new_std"] = 2 * model["module.attacker.normalize.new_std"]
    message = (
        r"^module\.attacker\.normalize\.new_std of the state dict is \(0\.4, 0\.6, 0\.5\), but std is "
        r"\(0\.2, 0\.3, 0\.25\): pass the normalisation that the network was trained with, std=\(0\.4, 0\.6, 0\.5\), "
        r"or leave that entry out$"
    )
    with pytest.raises(ValueError, match=message):
        imported("resnet18", checkpoint, (64, 64, 3))
    del model["module.attacker.normalize.new_std"]
    model["module.attacker.model.fc.bias"] = model["module.model.fc.bias"] + 1
    message = (
        r"holds the weights more than once, and their fc\.bias differ: pass weights='model\.module\.model' or "
        r"weights='model\.module\.attacker'$"
    )
    with pytest.raises(ValueError, match=message):
        imported("resnet18", checkpoint, (64, 64, 3))
    for weights, change in (
        ("model.module.model", 0),
        ("model.module.attacker", 1),
        ("model.module.attacker.model", 1),
    ):
        found = models.to_torch(imported("resnet18", checkpoint, (64, 64, 3), weights=weights))
        np.testing.assert_array_equal(found["fc.bias"], network.fc.bias.numpy() + change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "fitting", "size", "fault"),
    [
        ("resnet18", "resnet18_cifar", 64, r"  conv1\.weight \(64, 3, 7, 7\) +conv1\.weight \(64, 3, 3, 3\)"),
        ("resnet18_cifar", "resnet34", 32, r"  conv1\.weight.*conv1\.weight.*\n  - +layer1\.2\."),
        ("vgg11_cifar", "vgg13_bn_cifar", 32, r"  features.* features.*\n  and \d+ more of ano.*, \d+ more unexp"),
    ],
)
def test_weights_of_another_architecture_say_which_it_is(given, fitting, size, fault):
    weights = renamed(twin_of(fitting).state_dict(), (r"^", "model."))
    fault = re.sub("(conv1|layer1|features)", r"model\\.\1", fault)
    message = rf"(?s)^the state dict does not fit {given}; it fits {fitting}: pass that name\n.*{fault}"
    with pytest.raises(ValueError, match=message):
        imported(given, weights, (size, size, 3))


def test_weights_of_no_known_architecture_say_which_is_nearest():
    weights = dict(twin_of("resnet18_cifar").state_dict())
    del weights["bn1.bias"]
    message = r"; the nearest architecture is resnet18_cifar: 101 of its 102 arrays are there\n"
    with pytest.raises(ValueError, match=message):
        imported("resnet34_cifar", weights, (32, 32, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.to(torch.float8_e4m3fn),
            r"^fc1\.weight holds float8_e4m3fn, .*: convert it with \.float\(\), and mul",
        ),
        (
            lambda w: w.to(torch.int8),
            r"^fc1\.weight holds int8, and weights must be float16, bfloat16, float32 or float64",
        ),
        (lambda w: w.to_sparse(), r"^fc1\.weight is a sparse tensor, .*: call to_dense\(\) on it$"),
        (
            lambda w: w.to("meta"),
            r"^fc1\.weight is a tensor on the meta device, which holds no numbers: load the weights",
        ),
        # A hundred terabytes, were they written out.
        (
            lambda w: torch.zeros((), dtype=torch.bfloat16).expand(10**7, 10**7),
            r"\n  fc1\.weight \(120, 400\) +fc1\.weight \(10000000, 10000000\)$",
        ),
        (
            lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
            r"^fc1\.weight is quantized, .*: save the state dict of the network before .* or call dequantize\(\)",
        ),
        (lambda w: w.to_mkldnn(), r"^fc1\.weight is an mkldnn tensor, .*: call to_dense\(\) on it$"),
        (
            lambda w: torch.nested.nested_tensor([w, w[:1]]),
            r"^fc1\.weight is a nested tensor, and weights must be single arrays: save the tensors of its unbind\(\)",
        ),
        (
            lambda w: torch.nested.nested_tensor([w, w[:1]], layout=torch.jagged),
            r"^fc1\.weight is a nested tensor, and weights must be single arrays: save the tensors of its unbind\(\)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_tensors_that_are_no_plain_numbers_are_named(change, message):
    weights = dict(twin_of("lenet", channels=1).state_dict())
    with pytest.raises(ValueError, match=message):
        imported("lenet", {**weights, "fc1.weight": change(weights["fc1.weight"])}, (28, 28, 1))


def test_tensors_that_pytorch_has_only_marked_as_negated_are_read():
    weights = twin_of("lenet", channels=1).state_dict()
    numbers = weights["fc3.bias"].numpy()
    negated = torch.complex(torch.zeros(7), -weights["fc3.bias"]).conj().imag
    assert negated.is_neg()
    found = models.to_torch(imported("lenet", {**weights, "fc3.bias": negated}, (28, 28, 1)))
    np.testing.assert_array_equal(found["fc3.bias"], numbers)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    # One number in the file, and 1.2 MB written out: a larger one would take all memory.
    weights = {"linear.weight": torch.zeros(1).expand(100_000, 3), "linear.bias": torch.zeros(100_000)}
    torch.save(weights, tmp_path / "it.pt")
    small = {"image_shape": (1, 1, 3), "mean": (0,), "std": (1,)}
    for given in (weights, tmp_path / "it.pt"):
        with pytest.raises(
            ValueError, match=r"^linear\.weight \(100000, 3\) repeats a few numbers: if that is intended, call \.cont"
        ):
            models.from_torch("logistic", given, **small)
    # A hundred terabytes, were the list converted.
    listed = {**weights, "more": [torch.zeros(1).expand(10**7, 10**7)]}
    with pytest.raises(ValueError, match=r"  - +more \(1, 10000000, 10000000\)$"):
        models.from_torch("logistic", listed, **small)
    # What is small is read as it is meant.
    weights = {"linear.weight": torch.zeros(1).expand(2, 3), "linear.bias": torch.ones(()).expand(2)}
    found = models.to_torch(models.from_torch("logistic", weights, **small))
    np.testing.assert_array_equal(found["linear.bias"], [1, 1])


class Distributed(torch.Tensor):
    """A tensor whose numbers are elsewhere, as in libraries for distributed and quantized networks."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return args[0] if function is torch.ops.aten.detach.default else NotImplemented


def test_tensors_that_only_other_libraries_can_compute_with_are_named():
    weights = {**twin_of("lenet", channels=1).state_dict(), "fc1.weight": Distributed((120, 400))}
    message = (
        r"^fc1\.weight is a Distributed, whose numbers can't be read \(.*\): convert it to a plain tensor, with deq"
    )
    with pytest.raises(ValueError, match=message):
        imported("lenet", weights, (28, 28, 1))


def test_real_weight_norm_and_spectral_norm_are_named():
    for normalize, owner in (
        (torch.nn.utils.parametrizations.weight_norm, "a parametrization"),
        (torch.nn.utils.parametrizations.spectral_norm, "a parametrization"),
        (torch.nn.utils.spectral_norm, "spectral norm"),
    ):
        network = torch_twins.build("lenet", 1, 3)
        normalize(network.fc2)
        with pytest.raises(ValueError, match=rf"^fc2\.\S+ belongs to {owner}, and weights must be single arrays: call"):
            imported("lenet", network, (28, 28, 1))


def test_packed_layers_of_dynamic_quantization_are_named():
    layer = torch.zeros(7, 84)
    weights = {**twin_of("lenet", channels=1).state_dict(), "fc3._packed_params._packed_params": (layer, None)}
    del weights["fc3.weight"], weights["fc3.bias"]
    with pytest.raises(ValueError, match=r"^fc3\._packed_params\._packed_params is quantized, and weights must be"):
        imported("lenet", weights, (28, 28, 1))


def test_float8_in_safetensors_is_named(tmp_path):
    weights = {"linear.weight": torch.ones(2, 4).to(torch.float8_e5m2), "linear.bias": torch.zeros(2)}
    safetensors.torch.save_file(weights, tmp_path / "it.safetensors")
    with pytest.raises(
        ValueError, match=r"^linear\.weight of \S+ holds F8_E5M2, .*: convert it with PyTorch's \.float\(\)"
    ):
        models.from_torch("logistic", tmp_path / "it.safetensors", image_shape=(2, 2, 1), mean=(0,), std=(1,))


def test_a_torchscript_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    with pytest.raises(
        ValueError, match=r"script\.pt is a TorchScript archive, .*: save torch\.jit\.load\(file\)\.state_d"
    ):
        models.from_torch("lenet", tmp_path / "script.pt", image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.touch, (self.trace,)


@pytest.mark.parametrize("suffix", ["pt", "pth", "t7"])
def test_code_in_a_file_is_not_run(suffix, tmp_path):
    trace = tmp_path / "code_was_run"
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists()  # so that the file would do harm, were it unpickled
    trace.unlink()

    file = tmp_path / f"hostile.{suffix}"
    write(file, {**twin_of("lenet", channels=1).state_dict(), "epoch": Hostile(trace)})
    message = r"hostile\.\w+ does not hold tensors alone, and reading the rest could run code from the file: save the"
    with pytest.raises(ValueError, match=message):
        models.from_torch("lenet", file, image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))
    assert not trace.exists()
    np.savez(tmp_path / "hostile.npz", epoch=np.array(Hostile(trace), dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        models.from_torch("lenet", tmp_path / "hostile.npz", image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))
    assert not trace.exists()


def test_whole_pickled_networks_and_other_files_are_refused(tmp_path):
    torch.save(torch_twins.build("lenet", 1, 3), tmp_path / "network.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save(twin_of("lenet", channels=1).state_dict(), tmp_path / "whole.pth")
    np.savez(tmp_path / "whole.npz", weights=np.zeros(9))
    models.save(
        tmp_path / "whole.safetensors",
        models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2),
        architecture={"name": "logistic", "image_shape": (2, 2, 1), "num_classes": 2},
    )
    for suffix in ("pth", "npz", "safetensors"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"short.{suffix}").write_bytes(whole[: len(whole) - 20])
    for file, message in [
        (
            "network.pt",
            r"save the state dict by itself, with torch\.save\(model\.state_dict\(\), file\), or, if you trust",
        ),
        (
            "list.pt",
            r"list\.pt must hold a state dict, tensors by name, got list: save that with torch\.save\(model\.s",
        ),
        ("short.pth", r"short\.pth can't be read, it may be cut off or of another kind: "),
        ("short.npz", r"short\.npz can't be read, it may be cut off or of another kind: "),
        ("short.safetensors", r"short\.safetensors can't be read, it may be cut off or of another kind: "),
    ]:
        with pytest.raises(ValueError, match=message):
            models.from_torch("lenet", tmp_path / file, image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))


def test_files_of_pytorch_need_pytorch(monkeypatch, tmp_path):
    torch.save(twin_of("lenet", channels=1).state_dict(), tmp_path / "it.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"needs PyTorch: install torch, or convert the file to \.safetensors or \.npz"
    ):
        models.from_torch("lenet", tmp_path / "it.pt", image_shape=(28, 28, 1), mean=(0.1,), std=(0.3,))


def test_the_library_works_without_pytorch(tmp_path):
    write(tmp_path / "lenet.npz", twin_of("lenet", channels=1).state_dict())
    code = (
        "import sys; sys.modules['torch'] = None; from hmt_jax import models; "
        f"lenet = models.from_torch('lenet', {str(tmp_path / 'lenet.npz')!r}, image_shape=(28, 28, 1), mean=(0,), "
        "std=(1,)); print(len(models.to_torch(lenet)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "10\n"


def num_parameters(network):
    return sum(np.prod(variable.shape) for _, variable in nnx.to_flat_state(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet50", 1000, 25_557_032),
        ("vgg16", 1000, 138_357_544),
        ("densenet121", 1000, 7_978_856),
    ],
)
def test_the_number_of_parameters(name, num_classes, expected):
    assert num_parameters(_create.abstract(name, (32, 32, 3), num_classes)) == expected


@pytest.mark.parametrize(
    ("name", "image_shape", "message"),
    [
        ("vgg11", (31, 40, 3), "^VGG needs images of at least 32 x 32, got 31 x 40"),
        (
            "vgg11_cifar",
            (32, 64, 3),
            "^the CIFAR form of VGG needs images of at least 32 x 32 and at most 63 x 63, got 32 x 64",
        ),
        (
            "resnet18_cifar",
            (24, 32, 3),
            "CIFAR form of ResNet needs images of at least 25 x 25 and at most 56 x 56, got",
        ),
        (
            "resnet18_cifar",
            (57, 32, 3),
            "CIFAR form of ResNet needs images of at least 25 x 25 and at most 56 x 56, got",
        ),
        ("densenet121", (28, 29, 3), "^DenseNet needs images of at least 29 x 29, got 28 x 29"),
        ("densenet121_cifar", (31, 32, 3), "of DenseNet needs images of at least 32 x 32 and at most 63 x 63, got 31"),
    ],
)
def test_images_of_the_wrong_size_are_refused(name, image_shape, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, jax.random.key(0), image_shape=image_shape, num_classes=10)
    with pytest.raises(ValueError, match=message):
        models.from_torch(name, {}, image_shape=image_shape, mean=MEAN, std=STD)


# The least and the greatest sizes: PyTorch takes them, and neither one less nor one more.
@pytest.mark.parametrize(
    ("name", "least", "greatest"),
    [
        ("resnet18", 1, None),
        ("resnet18_cifar", 25, 56),
        ("vgg11", 32, None),
        ("vgg11_cifar", 32, 63),
        ("densenet121", 29, None),
        ("densenet121_cifar", 32, 63),
    ],
)
def test_the_limits_of_size_are_those_of_pytorch(name, least, greatest):
    with torch.device("meta"):
        network = torch_twins.build(name, 1, 2)
        for size in (least, greatest or 100):
            assert network(torch.zeros(1, 1, size, size)).shape == (1, 2)
        for size in (least - 1, *([greatest + 1] if greatest else [])):
            with pytest.raises(RuntimeError):
                network(torch.zeros(1, 1, size, size))


def test_modules_of_pytorch_are_told_of_their_way():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with pytest.raises(
        TypeError,
        match=r"^classifier is a PyTorch module, .*: pass hmt_jax\.from_torch_module\(module\), or hmt_jax\.m",
    ):
        hmt_jax.measure_margins(module, np.zeros((1, 2, 2, 1), np.float32), hmt_jax.subspaces.full((2, 2, 1)))
    with pytest.raises(
        TypeError, match=r"^state_dict must be .*, got Sequential: pass a module's weights with module\.st"
    ):
        models.from_torch("logistic", module, image_shape=(2, 2, 1), mean=[0], std=[1])


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"^unknown model 'resnet'; the known ones are densenet121, .*, vgg19_cifar$"):
        models.create("resnet", jax.random.key(0), image_shape=(8, 8, 1), num_classes=2)


@pytest.fixture(scope="module")
def created():
    """A network with batch norm and dropout."""
    options = {"image_shape": (32, 32, 3), "num_classes": 7, "num_hidden": (16,), "mean": MEAN, "std": STD}
    return models.create("vgg11_bn_cifar", jax.random.key(0), **options)


@pytest.mark.parametrize("build", ["create", "from_torch"])
def test_networks_are_in_evaluation_mode(build, created):
    if build == "create":
        classifier = created
        dropouts = [part for _, part in nnx.iter_modules(classifier) if isinstance(part, nnx.Dropout)]
        assert [part.deterministic for part in dropouts] == [True]
    else:
        classifier = imported("vgg11_bn_cifar", twin_of("vgg11_bn_cifar"), (32, 32, 3))
    norms = [part for _, part in nnx.iter_modules(classifier) if isinstance(part, nnx.BatchNorm)]
    assert [norm.use_running_average for norm in norms] == [True] * 8


def test_training_drops_units_by_a_key_and_moves_the_statistics(created):
    # Parameters, statistics, and no random state.
    state = nnx.state(created)
    assert {type(variable) for _, variable in nnx.to_flat_state(state)} == {
        nnx.Param,
        nnx.BatchStat,
        type(created.mean),
    }
    images = jnp.asarray(random_images(8, 32, 32, 3), jnp.float32)
    graphdef, state = nnx.split(created)

    @jax.jit
    def logits_in_training(state, key):
        network = nnx.merge(graphdef, state)
        network.train()
        network.set_attributes(nnx.Dropout, rngs=nnx.Rngs(key))
        return network(images), nnx.state(network, nnx.BatchStat)

    first, statistics = logits_in_training(state, jax.random.key(1))
    np.testing.assert_array_equal(first, logits_in_training(state, jax.random.key(1))[0])
    assert not np.allclose(first, logits_in_training(state, jax.random.key(2))[0], rtol=1e-3)

    # Ten per cent of the new mean; the old one is 0.
    features = torch_input(np.asarray(images)).float()
    weights = {name: torch.tensor(array) for name, array in models.to_torch(created).items()}
    convolved = torch.conv2d(features, weights["features.0.weight"], weights["features.0.bias"], padding=1)
    means = dict(nnx.to_flat_state(statistics))["network", "features", 1, "mean"][...]
    np.testing.assert_allclose(means, 0.1 * convolved.mean((0, 2, 3)).numpy(), rtol=1e-4, atol=1e-6)


def test_networks_of_one_architecture_share_compiled_code(created):
    traces = []

    @jax.jit
    def logits(classifier, images):
        traces.append(None)
        return classifier(images)

    images = jnp.zeros((1, 32, 32, 3))
    for seed in range(2):
        twin = torch_twins.VGG(11, 3, 7, has_norm=True, is_cifar=True, num_hidden=(16,))
        logits(as_pytree(imported("vgg11_bn_cifar", torch_twins.randomize(twin, seed), (32, 32, 3))), images)
    logits(as_pytree(created), images)
    assert len(traces) == 1


@pytest.mark.slow
def test_vgg_keeps_the_signal_alive():
    @jax.jit
    def spread(key, features):
        classifier = models.create("vgg19_cifar", key, image_shape=(32, 32, 3), num_classes=10)
        for layer in classifier.network.features:
            features = layer(features)
        return features.std()

    # With PyTorch's default it would be some 1e-7.
    images = jnp.asarray(random_images(2, 32, 32, 3), jnp.float32)
    assert 1e-3 < float(spread(jax.random.key(0), images - 0.5)) < 10


POOLINGS = [
    ((8, 8), 2, None, 0),
    ((7, 9), 3, 2, 1),
    ((8, 6), 3, 2, 1),
    ((1, 2), 3, 2, 1),
    ((9, 7), 2, 3, 0),
    ((6, 7), 3, 1, 1),
]


@pytest.mark.parametrize(("shape", "size", "stride", "padding"), POOLINGS)
def test_max_pool_and_its_gradient_agree_with_pytorch(shape, size, stride, padding, x64):
    # Three values only, so that most windows tie; overlapping windows then share their maxima or not.
    images = np.random.default_rng(3).integers(3, size=(2, *shape, 3)) - 1.0
    pixels = torch.tensor(np.moveaxis(images, -1, 1), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(pixels, size, stride, padding)
    cotangent = random_images(*expected.permute(0, 2, 3, 1).shape)
    (expected * torch.tensor(np.moveaxis(cotangent, -1, 1))).sum().backward()

    @jax.jit
    def pooled_and_gradient(images, cotangent):
        ours, pull_back = jax.vjp(lambda images: _layers.max_pool(images, size, stride=stride, padding=padding), images)
        return ours, *pull_back(cotangent)

    ours, gradient = pooled_and_gradient(images, cotangent)
    np.testing.assert_array_equal(ours, np.moveaxis(expected.detach().numpy(), 1, -1))
    # Sums of up to nine terms, in another order.
    np.testing.assert_allclose(gradient, np.moveaxis(pixels.grad.numpy(), 1, -1), rtol=0, atol=1e-14)


def test_max_pool_with_overlap_keeps_nan():
    images = np.ones((1, 6, 6, 1), np.float32)
    images[0, 1, 1, 0] = np.nan
    expected = torch.nn.functional.max_pool2d(torch.tensor(images[..., 0]), 3, 2, 1)
    assert np.isnan(expected.numpy()).sum() == 4
    ours = jax.jit(lambda images: _layers.max_pool(images, 3, stride=2, padding=1))(images)[..., 0]
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("shape", [(7, 7), (14, 21), (1, 1), (2, 3), (9, 16), (8, 5)])
def test_adaptive_pooling_agrees_with_pytorch(shape, x64):
    images = random_images(2, *shape, 3)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(np.moveaxis(images, -1, 1)), 7)
    ours = jax.jit(_layers.adaptive_avg_pool, static_argnums=1)(images, 7)
    np.testing.assert_allclose(ours, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("shape", "size"), [((8, 8), 2), ((7, 9), 2), ((7, 4), 4)])
def test_average_pooling_agrees_with_pytorch(shape, size, x64):
    images = random_images(2, *shape, 3)
    expected = torch.nn.functional.avg_pool2d(torch.tensor(np.moveaxis(images, -1, 1)), size)
    ours = jax.jit(_layers.avg_pool, static_argnums=1)(images, size)
    np.testing.assert_allclose(ours, np.moveaxis(expected.numpy(), 1, -1), rtol=0, atol=1e-14)
