"""The training of the authors, from a stand-in for a checkout of their repository, which notes what it is given."""

import itertools
import json

import numpy as np
from helpers import random_images

from experiments.benchmarks import reference
from hmt_jax import data, models, training

_UTILS = """
import json, pathlib, torch

def train(model, trans, trainloader, testloader, epochs, opt, loss_fun, lr_schedule, save_train_dir):
    seen = {"rates": [], "epochs": [], "normalised": [], "kinds": [type(opt).__name__, type(loss_fun).__name__]}
    for epoch in range(epochs):
        labels = []
        for index, (inputs, targets) in enumerate(trainloader):
            seen["rates"].append(float(lr_schedule(epoch + (index + 1) / len(trainloader))))
            loss_fun(model(trans(inputs)), targets).backward()
            labels.append(targets.tolist())
        seen["epochs"].append(labels)
    seen["test"] = [targets.tolist() for _, targets in testloader]
    seen["normalised"] = torch.cat([trans(inputs) for inputs, _ in trainloader]).flatten().tolist()
    seen["decay"] = opt.param_groups[0]["weight_decay"]
    model.conv1.bias.data.fill_(7)
    torch.save(model.state_dict(), save_train_dir + "model.t7")
    pathlib.Path(__file__).with_name("seen.json").write_text(json.dumps(seen))
"""
_LENET = "import torch_twins\n\ndef LeNet():\n    return torch_twins.build('lenet', 1, 10)\n"


def test_training_of_the_authors_gets_our_data_and_the_recipe(tmp_path):
    folder = tmp_path / "model_classes" / "mnist"
    folder.mkdir(parents=True)
    (folder / "lenet.py").write_text(_LENET)
    (tmp_path / "utils.py").write_text(_UTILS)
    images = (255 * random_images(25, 28, 28, 1, dtype="float32")).astype(np.uint8)
    labels = np.arange(25) % 10
    dataset = data.from_arrays(images, labels, images[:12], labels[:12])
    mean, std = (np.array([value]) for value in (images.mean() / 255, images.std() / 255))
    recipe = training.Recipe(num_epochs=5, batch_size=10)
    weights = reference.trained(tmp_path, "lenet", dataset, mean, std, recipe)

    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [[len(batch) for batch in epoch] for epoch in seen["epochs"]] == 5 * [[10, 10, 5]]
    orders = [[*itertools.chain(*epoch)] for epoch in seen["epochs"]]
    assert all(sorted(order) == sorted(labels) for order in orders)
    assert orders[0] != orders[1]
    assert [*itertools.chain(*seen["test"])] == labels[:12].tolist()
    # Two epochs up and three down, in three steps each.
    expected = 0.21 * np.concatenate([np.arange(1, 7) / 6, np.arange(8, -1, -1) / 9])
    np.testing.assert_allclose(seen["rates"], expected, atol=1e-12)
    np.testing.assert_allclose([np.mean(seen["normalised"]), np.std(seen["normalised"])], [0, 1], atol=1e-5)
    assert seen["kinds"] == ["SGD", "CrossEntropyLoss"]
    assert seen["decay"] == recipe.weight_decay
    classifier = models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=mean, std=std)
    assert any(np.all(np.asarray(value) == 7) for value in models.to_torch(classifier).values())
