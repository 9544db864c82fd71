"""The entry point of `hmt`: arguments, the command, and its exit code."""

import logging
import os
import shlex
import sys

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
    if (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8":
        os.environ.setdefault("PYTHON_TYRO_UTF8_BOXES", "False")
    import tyro

    from hmt_jax.cli import _commands

    # TFDS warns through absl if a decoder is not installed or a folder holds no data. Our own messages say more.
    logging.getLogger("absl").setLevel(logging.ERROR)
    commands = {
        "measure": _commands.Measure,
        "show": _commands.Show,
        "export": _commands.Export,
        "plot": _commands.Plot,
        "audit": _commands.Audit,
        "models": _commands.Models,
        "prepare": _commands.Prepare,
    }
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(name=name)(command)
    try:
        command = app.cli(prog="hmt", description=_DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as error:  # tyro has printed the help or what is wrong
        return int(error.code or 0)
    except BrokenPipeError:  # the reader of the help has closed it, as in `hmt measure --help | head`
        return _process.closed_output()
    typed = shlex.join(["hmt", *arguments])
    return _process.run(command.run, lambda: command.remedy(typed), is_debugged=command.debug)
