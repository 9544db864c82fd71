"""Pages that are generated whenever the documentation is built, so that they are never out of date.

There is a page of `reference/api/` for every public module of the library, with every name of its `__all__`, and a page
of `reference/command-line/` for each of the two commands, with what `--help` prints.
"""

import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy.typing
from sphinx.util.typing import stringify_annotation

import hmt_jax

# Each command as users type it, and its arguments for Python.
COMMANDS = {
    "hmt": ("-c", "import sys; from hmt_jax.cli import main; sys.exit(main())"),
    "python -m experiments": ("-m", "experiments"),
}


def setup(app):
    """Registers this extension with Sphinx."""
    app.connect("builder-inited", lambda app: write(pathlib.Path(app.srcdir) / "reference"))
    app.connect("autodoc-skip-member", lambda app, what, name, obj, skip, options: skip or is_field(obj))
    # Before Napoleon, whose priority is 500, makes markup of sections.
    app.connect("autodoc-process-docstring", lambda *args: rewrite(args[-1]), priority=400)
    app.connect("autodoc-process-signature", lambda app, *others: short_signature(*others[-2:]))
    return {"parallel_read_safe": True}


def write(folder):
    """Writes all pages into a folder; pages of what is gone are removed."""
    pages = {f"api/{name}.md": api_page(name) for name in public_modules()}
    pages |= {f"command-line/{command.split()[-1]}.md": command_page(command) for command in COMMANDS}
    for old in {*folder.glob("api/*.md"), *folder.glob("command-line/*.md")} - {folder / path for path in pages}:
        old.unlink()
    for path, text in pages.items():
        file = folder / path
        if not file.exists() or file.read_text("utf-8") != text:  # a new time of change would have it read again
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")


def public_modules():
    """Names of the public modules: the package, and the modules that its `__all__` or a user's import reaches."""
    names = [module.name for module in pkgutil.iter_modules(hmt_jax.__path__, "hmt_jax.")]
    others = [name for name in names if not name.split(".")[1].startswith("_") and name not in NOT_FOR_USERS]
    return ["hmt_jax", *others]


# The command line has pages of its own, and all names of `margins` are names of the package.
NOT_FOR_USERS = ("hmt_jax.cli", "hmt_jax.margins")


def public_names(module_name):
    """The names of a module's `__all__` in the order of the alphabet, without modules, which have their own pages."""
    module = importlib.import_module(module_name)
    names = [name for name in module.__all__ if not isinstance(getattr(module, name), types.ModuleType)]
    return sorted(names, key=str.lower)


def api_page(module_name):
    """The page of a module: its docstring, a table of its names, and their docstrings.

    What the package has from one of its public modules is described on the page of that module.
    """
    names = public_names(module_name)
    elsewhere = names_from_elsewhere() if module_name == "hmt_jax" else {}
    lines = [f".. automodule:: {module_name}", "", f".. currentmodule:: {module_name}", ""]
    lines += [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names), ""]
    for name in names:
        if name in elsewhere:
            lines += [f".. py:data:: {name}", "", f"   This is :py:obj:`{elsewhere[name]}`.", ""]
        else:
            lines += entry(module_name, name)
    return "\n".join([f"# {module_name}", "", "```{eval-rst}", *lines, "```", ""])


def names_from_elsewhere():
    """The full names, in public modules, of what the package has from them, by its names in the package."""
    return {
        name: f"{module_name}.{name}"
        for module_name in public_modules()[1:]
        for name in public_names(module_name)
        if name in hmt_jax.__all__ and getattr(hmt_jax, name) is getattr(importlib.import_module(module_name), name)
    }


def entry(module_name, name):
    """The lines that describe a name."""
    value = getattr(importlib.import_module(module_name), name)
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", "   :members:", ""]
    if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return [f".. autofunction:: {name}", ""]
    return [f".. py:data:: {name}", "", f"   {comment(module_name, name)}", ""]


def comment(module_name, name):
    """The comment #: before the assignment of a name, for aliases and texts, which have no docstrings of their own."""
    file = pathlib.Path(importlib.import_module(module_name).__file__)
    for source in sorted(file.parent.glob("*.py")) if file.stem == "__init__" else [file]:
        if found := re.search(rf"^#: (.+)\n{name}\b.* = ", source.read_text("utf-8"), re.MULTILINE):
            return found[1]
    raise ValueError(f"{module_name}.{name} has no docstring: write a comment that begins with #: before it")


def command_page(command):
    """The page of a command: what `--help` prints for it, and for each command below it."""
    top = help_text(command)
    below = re.search(r"\{([\w,-]+)\}", top)[1].split(",")
    with ThreadPoolExecutor(2) as threads:
        texts = [top, *threads.map(lambda name: help_text(command, name), below)]
    lines = [f"# {command}", ""]
    for name, text in zip(["", *below], texts, strict=True):
        lines += [f"## {command} {name}", ""] if name else []
        lines += ["```text", text.strip(), "```", ""]
    return "\n".join(lines)


def help_text(command, *arguments):
    """The output of a command with `--help`, no wider than a page of the site."""
    environment = os.environ | {"COLUMNS": "79", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(hmt_jax.__file__).parents[1]
    called = [sys.executable, *COMMANDS[command], *arguments, "--help"]
    run = subprocess.run(called, cwd=root, env=environment, capture_output=True, encoding="utf-8")
    if run.returncode:
        raise RuntimeError(f"{' '.join([command, *arguments])} --help failed: {run.stderr}")
    return run.stdout


def is_field(obj):
    """Whether a member is a field of a named tuple, which the docstring of its class describes."""
    return type(obj).__name__ == "_tuplegetter"


def short_signature(arguments, returns):
    """A signature with the names that types have in the source, where Sphinx writes out what they stand for."""
    names = [(stringify_annotation(alias, "smart"), name) for alias, name in ALIASES.items()]

    def shortened(text):
        for long, name in names:
            text = text and text.replace(long, name)
        return text

    return shortened(arguments), shortened(returns)


ALIASES = {
    jax.typing.ArrayLike: "ArrayLike",
    numpy.typing.ArrayLike: "ArrayLike",
    hmt_jax.classifiers.Classifier: "Classifier",
}


def rewrite(lines):
    """Makes reStructuredText of the lines of a docstring, in place."""
    lines[:] = as_restructured_text(lines)


def as_restructured_text(lines):
    """A docstring as Sphinx reads it; in the source, it is plain text that shows no markup in a terminal.

    Bars are bars, and no substitutions. A name in backticks may be followed by a letter. An indented block is kept as
    it stands. A list needs no blank line before it.
    """
    result, is_block = [], False
    for number, line in enumerate(lines):
        is_indented = line.startswith(" ")
        before = lines[number - 1] if number else ""
        starts_block = is_indented and not before and number > 1 and lines[number - 2][:1] not in ("", " ")
        is_block = starts_block or (is_block and (is_indented or not line))
        if starts_block:
            result += ["::", ""]
        if line.startswith("- ") and before and not before.startswith(("- ", " ")):
            result.append("")
        is_code = is_block or line.lstrip().startswith((">>>", "..."))
        result.append(line if is_code else _as_markup(line))
    return result


def _as_markup(line):
    parts = line.split("`")
    line = "`".join(part if number % 2 else part.replace("|", "\\|") for number, part in enumerate(parts))
    return re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)  # the plural of a name
