"""The entry point of `hmt`: arguments, the command, and its exit code."""

import inspect
import logging
import os
import shlex
import sys
from typing import Any

from hmt_jax.cli import _process

_DESCRIPTION = """Where a network's decision boundary is, feature by feature.

Measure the margins of a model on images with `hmt measure`, then look at them with `hmt show`, `plot` and `export`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the arguments name, and returns the exit code.

    It is 0, 2 for an error of the user's, 1 for an unexpected one, 130 after Ctrl-C, and 75 after SIGTERM: the same
    command then goes on.

    Args:
      arguments: the arguments after `hmt`; those of the process if not given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    typed = shlex.join(["hmt", *arguments])
    chosen: list[Any] = []

    def command() -> int:
        try:
            chosen.append(_parsed(arguments))
        except SystemExit as error:  # tyro has printed the help or what is wrong
            return int(error.code or 0)
        chosen[0].run()
        return 0

    def remedy() -> str:
        return chosen[0].remedy(typed) if chosen else f"start again with: {typed}"

    return _process.run(command, remedy, is_debugged="--debug" in arguments)


def _parsed(arguments: list[str]) -> Any:
    """The command with its arguments. The help of all commands has only the first paragraph of each one's."""
    if (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8":
        os.environ.setdefault("PYTHON_TYRO_UTF8_BOXES", "False")
    import tyro

    from hmt_jax.cli import _commands

    # TFDS warns through absl if a decoder is not installed or a folder holds no data. Our own messages say more.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # How a module of PyTorch runs, for instance.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hmt_jax").setLevel(logging.INFO)
    app = tyro.extras.SubcommandApp()
    for kind in _commands.COMMANDS:
        name = kind.__name__.lower()
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        app.command(name=name, help=None if arguments[:1] == [name] else summary)(kind)
    return app.cli(prog="hmt", description=_DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
