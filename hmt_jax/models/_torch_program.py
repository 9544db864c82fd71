"""Programs in files of `torch.export.save`, as PyTorch modules, read without running any code from the file.

PyTorch's own reader unpickles objects, evaluates expressions and runs guards from the file. This one reads the graph as
data, and knows only the operations of PyTorch's ATen library and arithmetic on shapes.
"""

import functools
import json
import math
import operator
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.typing import ArrayLike

from hmt_jax._extras import require
from hmt_jax._paths import expand
from hmt_jax.models._torch_module import Backend, TorchClassifier, from_torch_module
from hmt_jax.models._weight_files import RefusedError, readable

# The first number of the version of the format that this reader knows.
_SCHEMA = 8
# PyTorch's writer compresses nothing.
_MOST_EXPANSION = 4
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
}
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_OF_SHAPES = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "mod",
    "neg",
    "truediv",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and_",
    "or_",
)


class _Value(NamedTuple):
    """A value that a program has computed, by name."""

    name: str


class _Constant(NamedTuple):
    """An attribute of PyTorch's: a type or a memory format."""

    name: str


class _Device(NamedTuple):
    """The device of the images."""


class _Node(NamedTuple):
    """One operation of a program."""

    target: str
    arguments: tuple
    keywords: dict[str, Any]
    outputs: tuple[str, ...]


def load_torch_exported(
    path: str | os.PathLike,
    *,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
    backend: Backend = "auto",
) -> TorchClassifier:
    """A classifier from a file of PyTorch's `torch.export.save`, usually named `.pt2`.

    No code in the file is run, so it may come from anywhere: nothing is unpickled, and the program may use only the
    operations of PyTorch's ATen library and arithmetic on shapes. Example inputs in the file are not read.

    Export the module in evaluation mode, and with a batch of any size:
    `torch.export.export(module.eval(), (images,), dynamic_shapes=({0: torch.export.Dim("N")},))`, with at least two
    images. A program for a batch of one image is applied to one image at a time.

    Args:
      path: the file.
      mean, std, backend: as in `from_torch_module`.

    Returns:
      A classifier as `from_torch_module` returns it. Two files of the same program share compiled programs.

    Raises:
      ValueError: if the file can't be read; if it is of another version of the format; if it holds pickled objects in
        place of tensors; or if the program is in training mode, is made for a fixed batch of several images, takes or
        returns more than one tensor, or uses other operations. Also as `from_torch_module`.
      FileNotFoundError: if there is no such file.
      ModuleNotFoundError: as `from_torch_module`.
    """
    require("load_torch_exported", "torch", "torch")
    with readable(path), zipfile.ZipFile(pathlib.Path(expand("path", path))) as archive:
        module = _module(_File(str(path), archive))
    return from_torch_module(module, mean=mean, std=std, backend=backend)


class _File:
    """An open archive of PyTorch's, whose members are in one folder."""

    def __init__(self, name: str, archive: zipfile.ZipFile):
        self.name, self._archive = name, archive
        members = archive.infolist()
        size = sum(member.compress_size for member in members)
        if sum(member.file_size for member in members) > _MOST_EXPANSION * max(size, 2**20):
            raise RefusedError(f"{name} is much larger unpacked than packed, which no file of torch.export.save is")
        self._folder = members[0].filename.partition("/")[0] if members else ""
        models = [each for each in archive.namelist() if each.startswith(f"{self._folder}/models/")]
        if len(models) != 1:
            raise RefusedError(
                f"{name} must hold one exported program, but it holds {len(models)}: write it with "
                "torch.export.save(torch.export.export(module, ...), file)"
            )
        self.model = pathlib.PurePosixPath(models[0]).stem
        if (order := self.read("byteorder").decode()) != "little":
            raise RefusedError(f"{name} was written with the byte order {order!r}: export it on another machine")

    def read(self, member: str) -> bytes:
        return self._archive.read(f"{self._folder}/{member}")

    def read_json(self, member: str) -> Any:
        return json.loads(self.read(member))

    def refuse(self, fault: str) -> RefusedError:
        return RefusedError(f"{self.name} {fault}")


def _module(file: _File) -> Any:
    """The program in a file as a module in evaluation mode."""
    content = file.read_json(f"models/{file.model}.json")
    if (version := content["schema_version"]["major"]) != _SCHEMA:
        raise file.refuse(
            f"is in version {version} of the format, and only version {_SCHEMA} can be read: export it with PyTorch "
            "2.13"
        )
    graph, signature = content["graph_module"]["graph"], content["graph_module"]["signature"]
    outputs = [_kind_of(each) for each in signature["output_specs"]]
    if any(kind.endswith("mutation") for kind, _ in outputs):
        raise file.refuse("updates buffers, as in training mode: call module.eval() before torch.export.export")
    if [kind for kind, _ in outputs] != ["user_output"] or _kind_of(graph["outputs"][0])[0] != "as_tensor":
        raise file.refuse(f"must return one tensor, its logits, but the program returns {len(outputs)} values")
    tensors = {
        **_tensors(file, f"data/weights/{file.model}_weights_config.json", "data/weights"),
        **_tensors(file, f"data/constants/{file.model}_constants_config.json", "data/constants"),
    }
    own, images = {}, []
    for spec in signature["input_specs"]:
        kind, value = _kind_of(spec)
        key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
        if kind == "user_input" and _kind_of(value["arg"])[0] == "as_tensor":
            images.append(value["arg"]["as_tensor"]["name"])
        elif kind in key:
            own[value["arg"]["name"]] = (kind, tensors[value[key[kind]]])
        else:
            raise file.refuse(f"must take one tensor, the images, but the program takes {kind.replace('_', ' ')}")
    if len(images) != 1:
        raise file.refuse(f"must take one tensor, the images, but the program takes {len(images)}")
    size = graph["tensor_values"][images[0]]["sizes"][0].get("as_int")
    if size not in (None, 1):
        raise file.refuse(
            f"is made for batches of {size} images: export it with dynamic_shapes=({{0: torch.export.Dim('N')}},)"
        )
    nodes = tuple(_node(file, each) for each in graph["nodes"])
    output = graph["outputs"][0]["as_tensor"]["name"]
    return _program_class()(own, images[0], nodes, output, is_for_one=size == 1).eval()


def _kind_of(union: Mapping[str, Any]) -> tuple[str, Any]:
    """The name and the value of a union, which is a mapping of one item."""
    [(kind, value)] = union.items()
    return kind, value


def _tensors(file, config, folder) -> dict[str, Any]:
    """The tensors by name."""
    import torch

    tensors = {}
    for name, entry in file.read_json(config)["config"].items():
        meta = entry["tensor_meta"]
        if entry["use_pickle"] or meta is None:
            raise file.refuse(
                f"holds {name} as a pickled object, and reading it could run code from the file: export a module whose "
                "parameters, buffers and constants are plain tensors"
            )
        if (number := meta["dtype"]) not in _DTYPES:
            raise file.refuse(f"holds {name} in a type that is not known, number {number}")
        content = file.read(f"{folder}/{entry['path_name']}")
        dtype = getattr(torch, _DTYPES[number])
        flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
        sizes, strides = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
        if math.prod(sizes) > len(flat):
            raise file.refuse(f"holds {name} with {len(flat)} numbers, which is too few for its shape {tuple(sizes)}")
        tensors[name] = torch.as_strided(flat, sizes, strides, meta["storage_offset"]["as_int"])
    return tensors


def _node(file, node) -> _Node:
    import torch

    target = node["target"]
    arithmetic, aten = (
        re.fullmatch(rf"_operator\.({'|'.join(_OF_SHAPES)})", target),
        re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target),
    )
    overload: Any = None
    if aten:
        overload = getattr(getattr(torch.ops.aten, aten[1], None), aten[2], None)
    # Operations of ATen only compute, except those that take the name of a file.
    is_known = isinstance(overload, torch._ops.OpOverload) and not any(
        "file" in each.name for each in overload._schema.arguments
    )
    if not (arithmetic or is_known):
        raise file.refuse(
            f"uses {target}, which is not an operation of ATen: load the module itself in PyTorch, and pass it to "
            "hmt_jax.from_torch_module"
        )
    given = {each["name"]: _argument(file, target, each["arg"]) for each in node["inputs"]}
    if any(given.get(name) is True for name in ("train", "training")):
        raise file.refuse("was exported in training mode: call module.eval() before torch.export.export")
    outputs = tuple(name for each in node["outputs"] for name in _names_of(file, target, each))
    if arithmetic:
        return _Node(target, tuple(given.values()), {}, outputs)
    # Defaults are not in the file, and torchax does not know those of arguments by position.
    positions = [each for each in overload._schema.arguments if not each.kwarg_only]
    arguments = tuple(given.pop(each.name, each.default_value) for each in positions)
    keywords = {each.name: given.pop(each.name) for each in overload._schema.arguments if each.name in given}
    if given:
        raise file.refuse(f"passes {target} an argument that it does not take, {next(iter(given))}")
    return _Node(target, arguments, keywords, outputs)


def _argument(file, target, argument) -> Any:
    kind, value = _kind_of(argument)
    if kind in ("as_none", "as_layout"):
        return None
    if kind == "as_device":
        return _Device()
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"):
        return value
    if kind == "as_tensor":
        return _Value(value["name"])
    if kind == "as_tensors":
        return [_Value(each["name"]) for each in value]
    if kind == "as_optional_tensors":
        return [_argument(file, target, each) for each in value]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        inner, content = _kind_of(value)
        return _Value(content) if inner == "as_name" else content
    if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [_argument(file, target, {kind.removesuffix("s"): each}) for each in value]
    if kind == "as_scalar_type" and value in _DTYPES:
        return _Constant(_DTYPES[value])
    if kind == "as_memory_format":
        return _Constant(_MEMORY_FORMATS[value])
    raise file.refuse(f"passes {target} an argument that can't be read, {kind.removeprefix('as_')}")


def _names_of(file, target, output) -> list[str]:
    value = _argument(file, target, output)
    values = value if isinstance(value, list) else [value]
    return [each.name if isinstance(each, _Value) else "" for each in values]


@functools.cache
def _program_class() -> Any:
    """The class of programs, which is made when PyTorch is first needed."""
    import torch

    class Program(torch.nn.Module):
        """A program whose operations run one after the other."""

        def __init__(self, own, images, nodes, output, *, is_for_one):
            super().__init__()
            self._own, self._images, self._nodes, self._output = tuple(own), images, nodes, output
            self._is_for_one = is_for_one
            for name, (kind, tensor) in own.items():
                if kind == "parameter":
                    self.register_parameter(name, torch.nn.Parameter(tensor, tensor.dtype.is_floating_point))
                else:
                    self.register_buffer(name, tensor)

        def forward(self, images):
            if not self._is_for_one or len(images) == 1:
                return self._run(images)
            return torch.cat([self._run(image) for image in images.split(1)])

        def _run(self, images):
            values = {self._images: images, **{name: getattr(self, name) for name in self._own}}
            for node in self._nodes:
                if not node.outputs:  # a check of what was true of the example
                    continue
                arguments = [_given(each, values, images.device) for each in node.arguments]
                keywords = {name: _given(each, values, images.device) for name, each in node.keywords.items()}
                result = _function(node.target)(*arguments, **keywords)
                results = result if isinstance(result, list | tuple) else [result]
                values.update(zip(node.outputs, results, strict=True))
            return values[self._output]

    return Program


def _given(argument, values, device) -> Any:
    """An argument of an operation while the program runs."""
    import torch

    if isinstance(argument, _Value):
        return values[argument.name]
    if isinstance(argument, _Constant):
        return getattr(torch, argument.name)
    if isinstance(argument, _Device):
        return device
    return [_given(each, values, device) for each in argument] if isinstance(argument, list) else argument


def _function(target: str) -> Callable:
    import torch

    library, name, *overload = target.removeprefix("torch.ops.").split(".")
    if library == "_operator":
        return getattr(operator, name)
    if name == "sym_size":
        return lambda tensor, axis: tensor.shape[axis]
    return getattr(getattr(torch.ops.aten, name), overload[0])
