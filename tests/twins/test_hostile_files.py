"""Damaged and hostile files of PyTorch's: each is read as it was, or refused in a sentence, and runs no code."""

import jax
import pytest
import torch
from hostile import check_damage, check_refusal
from readers import SHAPE, WEIGHTS, Reader
from test_hostile import HOSTILE
from torch import nn

from hmt_jax import models

# PyTorch's own, when it exports and saves.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def _weights(**options):
    def write(folder):
        torch.save({name: torch.tensor(array) for name, array in WEIGHTS.items()}, folder / "it.pth", **options)

    return write


def _of_weights(folder):
    return jax.tree.leaves(models.from_torch("logistic", folder / "it.pth", image_shape=SHAPE, mean=(0,), std=(1,)))


def _program(folder):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        module[1].weight.fill_(0.5)
        module[1].bias.fill_(0.25)
    size = ({0: torch.export.Dim("N")},)
    torch.export.save(torch.export.export(module, (torch.ones(2, 1, 4, 4),), dynamic_shapes=size), folder / "it.pt2")


READERS = {
    "weights": Reader(_weights(), _of_weights, True),
    "legacy weights": Reader(_weights(_use_new_zipfile_serialization=False), _of_weights),
    "program": Reader(
        _program, lambda folder: jax.tree.leaves(models.load_torch_exported(folder / "it.pt2")), True, cost=4
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, tmp_path, num_examples, watch):
    (tmp_path / "files").mkdir()
    check_damage(kind, READERS[kind], tmp_path / "files", num_examples // 20 // READERS[kind].cost, watch)


def test_checksums_of_weights_are_compared_if_there_are_any(tmp_path):
    """PyTorch alone compares none, and can leave them out."""
    READERS["weights"].write(tmp_path)
    content = (tmp_path / "it.pth").read_bytes()
    place = content.index(WEIGHTS["linear.weight"].tobytes()) + 9
    (tmp_path / "it.pth").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert torch.load(tmp_path / "it.pth")["linear.weight"].tolist() != WEIGHTS["linear.weight"].tolist()
    with pytest.raises(ValueError, match=r"it\.pth can't be read, it may be cut off or of another kind: Bad CRC-32"):
        _of_weights(tmp_path)
    torch.serialization.set_crc32_options(False)
    try:
        READERS["weights"].write(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(_of_weights(tmp_path)) == 4


@pytest.mark.parametrize("kind", READERS)
def test_no_file_runs_code(kind, tmp_path, monkeypatch, watch):
    monkeypatch.chdir(tmp_path)
    READERS[kind].write(tmp_path)
    [file] = tmp_path.iterdir()
    for content in HOSTILE.values():
        watch()
        file.write_bytes(content)
        with pytest.raises((ValueError, OSError)) as caught:
            READERS[kind].read(tmp_path)
        check_refusal(caught.value, str(file))
        assert list(tmp_path.iterdir()) == [file]
