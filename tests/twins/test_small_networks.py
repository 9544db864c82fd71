"""Training of small networks beside PyTorch's."""

import jax
import numpy as np
import pytest
import torch

from experiments import small_networks
from experiments.small_networks import Settings


def test_training_is_that_of_pytorch():
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(12, 5, 6, 2)).astype(np.float32), rng.integers(3, size=12)
    settings = Settings("mlp", width=1, depth=2, batch_size=12, dropout_rate=0.0, weight_decay=0.1, wrong_share=0.0)

    def trained(learning_rate, max_epochs):
        """A network after as many epochs, of one step each."""
        rates = {"learning_rate": learning_rate, "max_epochs": max_epochs, "target_loss": 1e-9}
        return small_networks.train(settings, images, labels, 3, key=jax.random.key(0), **rates)

    before = trained(0.0, 1).classifier
    mean, std = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    layers = []
    for layer in before.network.linear:
        linear = torch.nn.Linear(*layer.kernel.shape)
        linear.weight.data = torch.tensor(np.asarray(layer.kernel[...]).T)
        linear.bias.data = torch.tensor(np.asarray(layer.bias[...]))
        layers += [linear, torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    inputs = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2).reshape(12, -1).copy())
    targets = torch.tensor(labels)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    found = trained(0.01, 3)
    np.testing.assert_allclose(found.classifier(images), module(inputs).detach(), atol=2e-5)
    loss = torch.nn.functional.cross_entropy(module(inputs), targets)
    assert found.metrics.loss == pytest.approx(loss.item(), abs=1e-5)
    assert found.num_epochs == 3
