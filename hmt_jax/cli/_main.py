"""The entry point of `hmt`: arguments, the command, and its exit code."""

import inspect
import logging
import re
import sys
from typing import Any

import hmt_jax
from hmt_jax.cli import _process

_DESCRIPTION = """Find out how far away a network's decision boundary is, feature by feature.

Measure the margins of a model on images with `hmt measure`, then look at them with `hmt show`, `report`,
`plot` and `export`.
"""


# Words of Python in messages of the library, as regular expressions, and what replaces them on the command line.
_WORDS = (
    (r"\bweights='([^']*)'", r"--weights-key '\1'"),
    (r"\b(mean|std)=\(([\d., -]*)\)", lambda match: f"--{match[1]} {match[2].replace(',', '')}"),
    (r"\bpass (mean|std)\b", r"pass --\1"),
    (r"\bmeasure_to_store\b", "hmt measure"),
    (r"\bpass a data_dir\b", "pass a --data-dir"),
    (
        r"\bread PyTorch's weights with hmt_jax\.models\.from_torch\(.*?\)",
        "pass weights in PyTorch's layout as --model NAME --weights FILE, with a name of hmt models",
    ),
    (r", or, if you trust the file, pass what torch\.load\(.*?\) returns", ""),
    (r"\bhmt_jax\.data\.prepare\([^)]*\), or `python -m experiments (prepare [^`]*)`", r"`hmt \1`"),
    (
        r", or silence hmt_jax\.PixelRangeWarning if this is intended",
        ", with --mean and --std if the model takes them",
    ),
)


def main(arguments: list[str] | None = None, *, program: str = "hmt") -> int:
    """Runs the command that the arguments name, and returns the exit code.

    The exit code is 0 after success, 2 after an error that the user can mend, 1 after an unexpected error, 130 after
    Ctrl-C, and 75 after SIGTERM, which means that the same command can be run again to go on.

    Args:
      arguments: the arguments after `hmt`; those of the process if not given.
      program: what was typed before them.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return _process.main(lambda each: _parsed(each, program), arguments, program=program, reworded=_reworded)


def _reworded(text: str) -> str:
    """A message with options of the command line in place of arguments in Python."""
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def _parsed(arguments: list[str], program: str) -> Any:
    """The command with its arguments. The help of `hmt` itself shows the first paragraph of each command's help."""
    if arguments == ["--version"]:
        print(f"hmt_jax {hmt_jax.__version__}")
        sys.exit()
    import tyro

    from hmt_jax.cli import _commands

    # The library logs how a PyTorch module runs, for instance.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hmt_jax").setLevel(logging.INFO)
    app = tyro.extras.SubcommandApp()
    for kind in _commands.COMMANDS:
        name = kind.__name__.lower()
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        app.command(name=name, help=None if arguments[:1] == [name] else summary)(kind)
    return app.cli(prog=program, description=_DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
