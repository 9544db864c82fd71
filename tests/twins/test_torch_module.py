"""PyTorch modules as classifiers: logits, gradients and margins against PyTorch, and what can't be one.

Only files of `torch.export.save` are in `test_torch_program.py`.
"""

import importlib.util
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hmt_jax
from hmt_jax import classifiers, models, subspaces

MEAN, STD = (0.4, 0.6), (0.2, 0.3)
has_torchax = pytest.mark.skipif(importlib.util.find_spec("torchax") is None, reason="needs torchax")
BACKENDS = [pytest.param("torchax", marks=has_torchax), "callback"]


class Small(nn.Module):
    """Batch norm, overlapping pooling with ties, an in-place activation, dropout and a tensor that is an attribute."""

    def __init__(self, slope=0.1):
        super().__init__()
        self.slope = slope
        self.convolution = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout()
        self.linear = nn.Linear(16, 3)
        self.factor = torch.tensor(1.5)

    def forward(self, images):
        features = functional.leaky_relu_(self.norm(self.convolution(images)), self.slope)
        features = functional.max_pool2d(functional.relu(features), 3, stride=2, padding=1) * self.factor
        return self.linear(self.dropout(features.flatten(1)))


def small(seed=0, slope=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    module = Small(slope)
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    return module.to(dtype).eval()


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def logits_by_torch(module, images):
    """Logits and the gradients of the last one, by PyTorch."""
    dtype = next(module.parameters()).dtype
    given = torch.tensor(images, dtype=dtype, requires_grad=True)
    statistics = (torch.tensor(each, dtype=dtype) for each in (MEAN, STD))
    mean, std = statistics
    logits = module(((given - mean) / std).permute(0, 3, 1, 2))
    (gradient,) = torch.autograd.grad(logits[:, -1].sum(), given)
    return logits.detach().numpy(), gradient.numpy()


@jax.jit
def value_and_gradient(classifier, images):
    gradient = jax.grad(lambda images: classifier(images)[:, -1].sum())(images)
    return classifier(images), gradient


def deepfool(classifier, images, **settings):
    windows = subspaces.dct_diagonal(images.shape[1:], size=3, step=3)
    return hmt_jax.measure_margins(classifier, images, windows, hmt_jax.solvers.DeepFool(), **settings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_and_gradients_are_those_of_pytorch(backend):
    module, images = small(), random_images(3, 6, 6, 2)
    classifier = hmt_jax.from_torch_module(module, mean=MEAN, std=STD, backend=backend)
    found = value_and_gradient(classifier, images)
    for each, expected in zip(found, logits_by_torch(module, images), strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_modules_compute_in_float64(backend, x64):
    module, images = small(dtype=torch.float64), random_images(3, 6, 6, 2)
    classifier = hmt_jax.from_torch_module(module, mean=MEAN, std=STD, backend=backend)
    logits, gradient = value_and_gradient(classifier, images)
    assert (logits.dtype, gradient.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(logits, logits_by_torch(module, images)[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_margins_end_where_pytorch_changes_the_label(backend):
    module, images = small(), random_images(4, 6, 6, 2)
    classifier = hmt_jax.from_torch_module(module, mean=MEAN, std=STD, backend=backend)
    result = deepfool(classifier, images, keep_coordinates=True, devices=jax.devices()[:2])
    assert (result.status == hmt_jax.Status.CONVERGED).all()
    np.testing.assert_array_equal(result.label[0], logits_by_torch(module, images)[0].argmax(1))
    for number, window in enumerate(subspaces.dct_diagonal((6, 6, 2), size=3, step=3)):
        perturbed = images + np.stack([window.embed(jnp.asarray(each)) for each in result.coordinates[number]])
        labels = logits_by_torch(module, perturbed.astype(np.float32))[0].argmax(1)
        np.testing.assert_array_equal(labels, result.adversarial_label[number])


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_the_module_further_does_not_change_the_classifier(backend):
    module, images = small(), random_images(2, 6, 6, 2)
    expected = logits_by_torch(module, images)[0]
    classifier = hmt_jax.from_torch_module(module, mean=MEAN, std=STD, backend=backend)
    with torch.no_grad():
        for each in [*module.parameters(), *module.buffers(), module.factor]:
            each.add_(1)
    np.testing.assert_allclose(classifier(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_modules_of_one_architecture_share_programs(backend):
    traced = []

    @jax.jit
    def logits_of(classifier, images):
        traced.append(classifier)
        return classifier(images)

    images = random_images(2, 6, 6, 2)
    modules = [small(0), small(1), small(0, slope=0.2)]
    for module, num_programs in zip(modules, (1, 1, 2), strict=True):
        classifier = hmt_jax.from_torch_module(module, mean=MEAN, std=STD, backend=backend)
        expected = logits_by_torch(module, images)[0]
        np.testing.assert_allclose(logits_of(classifier, images), expected, rtol=1e-5, atol=1e-5)
        assert len(traced) == num_programs


def skeleton_of(module):
    return hmt_jax.from_torch_module(module.eval(), backend="callback").skeleton


def test_modules_that_may_behave_otherwise_share_nothing():
    class Layer(nn.Module):
        def forward(self, images):
            return images

    before = skeleton_of(Layer())
    assert before == skeleton_of(Layer())
    Layer.forward = lambda self, images: 2 * images
    assert before != skeleton_of(Layer())

    class Layer(nn.Module):  # the same name
        def forward(self, images):
            return 3 * images

    assert before != skeleton_of(Layer())
    assert skeleton_of(nn.Linear(2, 3)) != skeleton_of(nn.Linear(3, 3))
    hooked = nn.Linear(2, 3)
    hooked.register_forward_hook(lambda module, given, output: -output)
    assert skeleton_of(nn.Linear(2, 3)) != skeleton_of(hooked)
    # Values that are no data, in a list.
    listed = [nn.Linear(2, 3) for _ in range(2)]
    for each in listed:
        each.tables = [torch.ones(3)]
    assert skeleton_of(listed[0]) != skeleton_of(listed[1])


def test_a_step_calls_pytorch_once_for_all_lanes():
    calls = []

    class Counting(Small):
        def forward(self, images):
            calls.append(len(images))
            return super().forward(images)

    torch.manual_seed(0)
    classifier = hmt_jax.from_torch_module(Counting().eval(), backend="callback")
    images = jnp.asarray(random_images(5, 6, 6, 2))
    cotangents = jnp.eye(3)

    @jax.jit
    @jax.vmap
    def gradients(image):
        _, pull_back = jax.vjp(lambda image: classifier(image[None])[0], image)
        return jax.vmap(lambda cotangent: pull_back(cotangent)[0])(cotangents)

    compiled = gradients.lower(images).compile()
    calls.clear()
    found = compiled(images)
    assert calls in ([5], [5, 5])  # a forward pass whose logits are not used may be left out
    one = torch.tensor(np.moveaxis(images[2], -1, 0)[None], requires_grad=True)
    module = Counting().eval()
    module.load_state_dict({name: torch.tensor(np.asarray(each)) for name, each in classifier.tensors.items()}, False)
    for row, logit in zip(found[2], module(one)[0], strict=True):
        expected = torch.autograd.grad(logit, one, retain_graph=True)[0][0]
        np.testing.assert_allclose(np.moveaxis(row, -1, 0), expected, rtol=1e-5, atol=1e-6)


def test_large_batches_are_split(monkeypatch):
    monkeypatch.setattr("hmt_jax.models._torch_skeleton._MOST_BYTES", 2000)  # about two images
    test_logits_and_gradients_are_those_of_pytorch("callback")


def test_many_devices_do_not_wait_for_each_other():
    """Weights so large that JAX copies them in threads, which all callbacks would wait for, if it copied them."""
    torch.manual_seed(0)
    hidden = [nn.Linear(512, 512) for _ in range(12)]
    module = nn.Sequential(nn.Flatten(), nn.Linear(512, 512), *hidden, nn.Tanh(), nn.Linear(512, 3)).eval()
    images = random_images(8, 16, 16, 2)
    classifier = hmt_jax.from_torch_module(module, backend="callback")
    expected = module(torch.tensor(images).permute(0, 3, 1, 2)).detach()
    mesh, spec = jax.sharding.Mesh(jax.devices(), ("devices",)), jax.sharding.PartitionSpec
    program = jax.jit(
        jax.shard_map(
            lambda classifier, images: classifier(images),
            mesh=mesh,
            in_specs=(spec(), spec("devices")),
            out_specs=spec("devices"),
        )
    )
    for _ in range(4):
        np.testing.assert_allclose(program(classifier, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_authors_lenet_has_the_authors_margins(backend, reference, x64):
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

        def forward(self, images):
            features = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
            features = functional.max_pool2d(functional.relu(self.conv2(features)), 2)
            features = functional.relu(self.fc1(features.flatten(1)))
            return self.fc3(functional.relu(self.fc2(features)))

    module = LeNet()
    weights = {name: torch.tensor(each) for name, each in reference.items() if name.startswith("weights/")}
    module.load_state_dict({name.removeprefix("weights/"): each for name, each in weights.items()})
    classifier = hmt_jax.from_torch_module(module.double().eval(), mean=[0.1307], std=[0.3081], backend=backend)
    windows = subspaces.dct_diagonal((28, 28, 1), size=8, step=1)[::5]
    images = reference["images"][:6, ..., None] / 255
    result = hmt_jax.measure_margins(classifier, images, windows, hmt_jax.solvers.DeepFool(), devices=jax.devices()[:1])
    group = "diagonal_8x8_step1"
    np.testing.assert_array_equal(result.num_steps, reference[f"{group}/steps"][::5, :6])
    np.testing.assert_allclose(result.margin, reference[f"{group}/margin"][::5, :6], rtol=1e-9)


# The choice of a backend


@has_torchax
def test_auto_says_which_backend_it_took(caplog):
    module, images = small(slope=0.3), random_images(2, 6, 6, 2)
    classifier = hmt_jax.from_torch_module(module, mean=MEAN, std=STD)
    with caplog.at_level(logging.INFO, "hmt_jax"):
        logits = jax.jit(lambda classifier, images: classifier(images))(classifier, images)
    np.testing.assert_allclose(logits, logits_by_torch(module, images)[0], rtol=1e-5, atol=1e-5)
    taken = classifier.backend_for((6, 6, 2))
    assert taken in ("torchax", "callback")
    [record] = caplog.records
    pattern = rf"backend='{taken}': a gradient takes [\d.e-]+ s by torchax and [\d.e-]+ s by callback"
    assert re.search(pattern, record.getMessage())


class Unusual(nn.Module):
    """An operation that torchax does not know."""

    def forward(self, images):
        return torch.special.airy_ai(images.flatten(1))[:, :3]


@has_torchax
def test_an_operation_that_cannot_be_translated_is_named(caplog):
    images = random_images(2, 2, 2, 1)
    classifier = hmt_jax.from_torch_module(Unusual().eval(), backend="torchax")
    with pytest.raises(ValueError, match=r"uses aten::special_airy_ai, which torchax .* can't translate.*'callback'"):
        classifiers.logits_of(classifier, images)
    with caplog.at_level(logging.INFO, "hmt_jax"):
        taken = hmt_jax.from_torch_module(Unusual().eval()).backend_for((2, 2, 1))
    assert taken == "callback"
    assert "special_airy_ai" in caplog.text


# What can't be a classifier


def test_a_module_is_named_with_its_remedy():
    with pytest.raises(
        TypeError, match=r"pass hmt_jax.from_torch_module\(module\), or hmt_jax.models.from_torch\(name"
    ):
        classifiers.as_pytree(small())


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got OrderedDict: pass the module itself"):
        hmt_jax.from_torch_module(small().state_dict())


def test_training_mode_is_refused():
    module = small()
    module.dropout.train()
    with pytest.raises(ValueError, match=r"^module's dropout is in training mode: call module.eval\(\) first$"):
        hmt_jax.from_torch_module(module)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_numbers_in_evaluation_mode_are_refused(backend):
    class Random(nn.Module):
        def forward(self, images):
            return functional.dropout(images.flatten(1))

    classifier = hmt_jax.from_torch_module(Random().eval(), backend=backend)
    with pytest.raises(ValueError, match=r"draws random numbers in evaluation mode.*training=self.training"):
        classifiers.logits_of(classifier, jnp.asarray(random_images(1, 2, 2, 1)))


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"all float32 or all float64, got bfloat16: call module.float\(\)"):
        hmt_jax.from_torch_module(small(dtype=torch.bfloat16))
    module = small()
    module.linear.double()
    with pytest.raises(ValueError, match=r"got float32 and float64"):
        hmt_jax.from_torch_module(module)
    with pytest.raises(
        ValueError, match=r"computes in float64, which JAX has off: call .*enable_x64.* or module.float"
    ):
        hmt_jax.from_torch_module(small(dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_images_and_outputs_are_refused(backend):
    def check(module, shape, match, **statistics):
        classifier = hmt_jax.from_torch_module(module.eval(), backend=backend, **statistics)
        with pytest.raises(ValueError, match=match):
            classifiers.logits_of(classifier, jnp.asarray(random_images(*shape)))

    check(small(), (1, 9, 9, 2), r"images of shape \(N, 9, 9, 2\): mat1 and mat2 shapes cannot be multiplied")
    check(small(), (1, 6, 6, 2), r"mean must have one number for each of 2 channels", mean=(0.1, 0.2, 0.3))
    check(nn.Conv2d(1, 2, 1), (2, 2, 2, 1), r"for N = 2 it returned")

    class Pair(nn.Module):
        def forward(self, images):
            return images.flatten(1), images

    check(Pair(), (1, 2, 2, 1), r"must return one array, its logits \(N, L\), got tuple")


def test_one_number_normalises_every_channel():
    module, images = nn.Flatten().eval(), random_images(2, 3, 3, 2)
    expected = module(torch.tensor((images.transpose(0, 3, 1, 2) - 0.5) / 0.25))
    found = hmt_jax.from_torch_module(module, mean=0.5, std=0.25)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"backend must be one of auto, torchax, callback, got 'jax'"):
        hmt_jax.from_torch_module(small(), backend="jax")
    with pytest.raises(ValueError, match=r"std must be positive and finite, got 0"):
        hmt_jax.from_torch_module(small(), std=(0, 1))
    with pytest.raises(ValueError, match=r"mean must have one number for each channel.*got shape \(1, 2\)"):
        hmt_jax.from_torch_module(small(), mean=((0.5, 0.5),))
    module = small()
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(
        ValueError, match=r"module's sparse must be a dense tensor with values, but it is torch.sparse_coo"
    ):
        hmt_jax.from_torch_module(module)


def test_parameters_have_no_derivatives_by_callback():
    classifier = hmt_jax.from_torch_module(small(), backend="callback")
    images = jnp.asarray(random_images(1, 6, 6, 2))

    def loss(weights):
        tensors = classifier.tensors | {"linear.weight": weights}
        return models.TorchClassifier(tensors, None, None, classifier.skeleton, "callback")(images).sum()

    with pytest.raises(ValueError, match=r"parameters of a PyTorch module have no derivatives with backend='callback'"):
        jax.grad(loss)(classifier.tensors["linear.weight"])
