"""Files of `torch.export.save`: that their classifiers are PyTorch's, and that no code in a file is run."""

import io
import json
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_torch_module import BACKENDS, MEAN, STD, logits_by_torch, random_images, small
from torch import nn

from hmt_jax import models

# PyTorch's own, when it exports and saves.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ANY_BATCH = ({0: torch.export.Dim("N")},)


def export(path, module, *, batch=2, decomposed=False, **settings):
    settings = settings or ({"dynamic_shapes": ANY_BATCH} if batch > 1 else {})
    program = torch.export.export(module, (torch.ones(batch, 2, 6, 6),), **settings)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The content of a file, by the names of its members."""
    with zipfile.ZipFile(export(tmp_path_factory.mktemp("saved") / "it.pt2", small())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members, **changes):
    """A file with other members, whose names are given by their ends."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            [changed] = [value for end, value in changes.items() if name.endswith(end)] or [content]
            archive.writestr(name, changed if isinstance(changed, bytes) else json.dumps(changed))
    return path


def parsed(members, end):
    [content] = [content for name, content in members.items() if name.endswith(end)]
    return json.loads(content)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [{}, {"decomposed": True}, {"batch": 1}], ids=["saved", "decomposed", "one"])
def test_programs_have_the_logits_of_their_modules(settings, backend, tmp_path):
    module, images = small(), random_images(3, 6, 6, 2)
    path = export(tmp_path / "it.pt2", module, **settings)
    classifier = models.load_torch_exported(path, mean=MEAN, std=STD, backend=backend)
    np.testing.assert_allclose(classifier(images), logits_by_torch(module, images)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_may_compute_with_shapes_and_lists(backend, tmp_path):
    class Mixed(nn.Module):
        def forward(self, images):
            parts = images.reshape(images.shape[0] * 2, -1).reshape(images.shape[0], -1).chunk(2, dim=1)
            ramp = torch.arange(parts[0].shape[1], dtype=images.dtype, device=images.device)
            scores = torch.stack([(part * ramp).sum(1) for part in parts] + [images.mean((1, 2, 3))], dim=1)
            return nn.functional.gelu(scores, approximate="tanh").to(torch.float32)

    module, images = Mixed().eval(), random_images(3, 6, 6, 2)
    classifier = models.load_torch_exported(export(tmp_path / "it.pt2", module), backend=backend)
    expected = module(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(classifier(images), expected, rtol=1e-5, atol=1e-5)


def test_files_of_one_program_share_compiled_code(tmp_path):
    paths = [export(tmp_path / f"{seed}.pt2", small(seed)) for seed in (0, 1)]
    first, second = (models.load_torch_exported(path, backend="callback") for path in paths)
    assert first.skeleton == second.skeleton
    other = models.load_torch_exported(export(tmp_path / "it.pt2", small(slope=0.2)), backend="callback")
    assert first.skeleton != other.skeleton


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["weight", "constant", "inputs", "operator", "expression", "guard", "name", "file"])
def test_no_code_in_a_file_is_run(place, saved, tmp_path):
    mark = tmp_path / "mark"
    touch = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    file = io.BytesIO()
    torch.save(Payload(mark), file)
    pickled = file.getvalue()
    # The pickle does what it should when it is read.
    pickle.loads(pickle.dumps(Payload(mark)))
    mark.unlink()
    changes, refused = {}, "holds .* as a pickled object, and reading it could run code"
    program = parsed(saved, "models/model.json")
    if place in ("weight", "constant"):
        folder = {"weight": "weights", "constant": "constants"}[place]
        config = parsed(saved, f"{folder}_config.json")
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        changes = {f"{folder}_config.json": config, f"data/{folder}/{entry['path_name']}": pickled}
    elif place == "inputs":
        changes, refused = {"sample_inputs/model.pt": pickled}, None
    else:
        graph = program["graph_module"]["graph"]
        node = graph["nodes"][0]
        if place == "operator":
            node["target"], refused = "torch.os.system", "uses torch.os.system, which is not an operation of ATen"
            node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {mark}"}, "kind": 1}]
        elif place == "file":
            node["target"], refused = "torch.ops.aten.from_file.default", "uses torch.ops.aten.from_file.default, which"
            node["inputs"] = [
                {"name": "filename", "arg": {"as_string": str(mark)}, "kind": 1},
                {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
                {"name": "size", "arg": {"as_int": 1}, "kind": 1},
            ]
        elif place == "expression":
            size = graph["tensor_values"]["images"]["sizes"]
            size[0], refused = {"as_expr": {"expr_str": touch, "hint": {"as_int": 2}}}, None
        elif place == "guard":
            program["guards_code"], refused = [touch], None
        else:
            renamed = json.dumps(program).replace('"images"', json.dumps(f"images, it={touch}"))
            program, refused = json.loads(renamed), None
        changes = {"models/model.json": program}
    path = write(tmp_path / "it.pt2", saved, **changes)
    if refused:
        with pytest.raises(ValueError, match=refused):
            models.load_torch_exported(path, backend="callback")
    else:
        images = random_images(2, 6, 6, 2)
        logits = models.load_torch_exported(path, mean=MEAN, std=STD, backend="callback")(jnp.asarray(images))
        np.testing.assert_allclose(logits, logits_by_torch(small(), images)[0], rtol=1e-5, atol=1e-5)
    assert not mark.exists()


def test_what_is_no_such_file_is_refused(saved, tmp_path):
    def check(match, content=None, **changes):
        path = tmp_path / "it.pt2"
        write(path, saved if content is None else content, **changes)
        with pytest.raises(ValueError, match=match):
            models.load_torch_exported(path)

    check("must hold one exported program, but it holds 0: write it with torch.export.save", {"it/a": b"1"})
    program = parsed(saved, "models/model.json")
    program["schema_version"]["major"] = 9
    check("is in version 9 of the format, and only version 8 can be read", **{"models/model.json": program})
    check("written with the byte order 'big'", byteorder=b"big")
    config = parsed(saved, "weights_config.json")
    next(iter(config["config"].values()))["tensor_meta"]["sizes"] = [{"as_int": 10**9}]
    check("numbers, which is too few for its shape", **{"weights_config.json": config})
    with pytest.raises(FileNotFoundError):
        models.load_torch_exported(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ValueError, match=r"text.pt2 can't be read, it may be cut off or of another kind"):
        models.load_torch_exported(tmp_path / "text.pt2")


def test_programs_that_are_no_classifiers_are_refused(tmp_path):
    def check(module, match, **settings):
        with pytest.raises(ValueError, match=match):
            models.load_torch_exported(export(tmp_path / "it.pt2", module, **settings))

    check(small(), r"made for batches of 2 images: export it with dynamic_shapes", dynamic_shapes=None)
    check(small().train(), r"in training mode: call module.eval\(\) before torch.export.export")

    class Pair(nn.Module):
        def forward(self, images):
            return images.flatten(1), images.mean((2, 3))

    check(Pair(), r"must return one tensor, its logits, but the program returns 2 values")
