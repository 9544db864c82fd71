"""Paths that users pass."""

import os

_MOST_CHARACTERS = 300  # of the message of another library

PathLike = str | os.PathLike[str]


def expand(argument: str, path: PathLike) -> str:
    """The path as a string, with the home directory in place of `~` or `~user`, as in a shell.

    Raises:
      ValueError: if it is not a path, if it holds a NUL character, or if that home directory is not known, because the
        path would become a folder named `~`.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise ValueError(f"{argument} must be a path, a string or a pathlib.Path, got {type(path).__name__}")
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{argument} is {shown(path)}, and no path may hold the character \\0: leave it out")
    expanded = os.path.expanduser(os.fsdecode(path))
    if expanded.startswith("~"):
        raise ValueError(
            f"{argument} is {shown(expanded)}, but the home directory {shown(expanded.split(os.sep)[0])} is not known: "
            "write the full path, or put ./ before it if ~ is part of the name"
        )
    return expanded


def shown(path: PathLike) -> str:
    """The path as text for a message: quoted if empty, escaped if it has line breaks or bytes that are not UTF-8."""
    text = os.fsdecode(path)
    return text if text and text.isprintable() else ascii(text)


def reason(error: BaseException) -> str:
    """The first line of an error's message, printable, and cut if it is long; if it is empty, the error's class."""
    lines = str(error).strip().splitlines()
    return short(shown(lines[0])) if lines else type(error).__name__


def short(text: str) -> str:
    """A text for a message, cut if it is long."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
