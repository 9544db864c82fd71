"""The entry point of `hmt`: arguments, the command, and its exit code."""

import inspect
import logging
import os
import re
import shlex
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
    typed = f"{program} {shlex.join(arguments)}".rstrip()
    chosen: list[Any] = []

    def command() -> int:
        if arguments == ["--version"]:
            print(f"hmt_jax {hmt_jax.__version__}")
            return 0
        _check_once(arguments)
        try:
            chosen.append(_parsed(arguments, program))
        except SystemExit as error:  # tyro has printed the help or what is wrong
            return int(error.code or 0)
        _process.use_fast_convolutions()
        chosen[0].run()
        return 0

    def remedy() -> str:
        return chosen[0].remedy(typed) if chosen else f"start again with: {typed}"

    return _process.run(command, remedy, reworded=_reworded, is_debugged="--debug" in arguments)


def _check_once(arguments: list[str]) -> None:
    """Raises ValueError for an option that is there twice, of which tyro would take the last."""
    options = [argument.partition("=")[0] for argument in arguments if re.match("--[a-z]", argument)]
    if doubled := [option for option in dict.fromkeys(options) if options.count(option) > 1]:
        raise ValueError(f"{doubled[0]} is there twice: give it once, with all its values after it")


def _reworded(text: str) -> str:
    """A message with options of the command line in place of arguments in Python."""
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def _parsed(arguments: list[str], program: str) -> Any:
    """The command with its arguments. The help of `hmt` itself shows the first paragraph of each command's help."""
    if (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8":
        os.environ.setdefault("PYTHON_TYRO_UTF8_BOXES", "False")
    import tyro

    from hmt_jax.cli import _commands

    # TFDS warns through absl if a decoder is not installed or a folder holds no data. Our own messages say more.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # The library logs how a PyTorch module runs, for instance.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hmt_jax").setLevel(logging.INFO)
    app = tyro.extras.SubcommandApp()
    for kind in _commands.COMMANDS:
        name = kind.__name__.lower()
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        app.command(name=name, help=None if arguments[:1] == [name] else summary)(kind)
    return app.cli(prog=program, description=_DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
