"""Files that are written whole or not at all, and the checksums that tell whether they are still the same."""

import contextlib
import hashlib
import os
import pathlib
import secrets

PREFIX = ".hmt_jax-part-"  # of temporary files: a process that is killed leaves the one that it was writing


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, which appears under its name when all of it is on the disk.

    The temporary file beside it has a name that nobody can foresee, and must be new: writers of one file do not meet in
    it, and no symbolic link leads it elsewhere.

    Raises:
      OSError: with the path in it, if there is no space or no permission. What was there before stays.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(PREFIX + secrets.token_hex(8))
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:  # which names no file where writing fails, and the temporary one otherwise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _sync(folder) -> None:
    """Brings the names in a folder to the disk, where a system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum_line(name: str, content: bytes) -> str:
    """A line as `sha256sum` prints it, and checks it with `-c`."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}"


def checksums(folder: pathlib.Path, *, without: str) -> str:
    """The lines of all files in a folder and those inside it, but for one name."""
    lines = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if (name := file.relative_to(folder).as_posix()) != without:
            with file.open("rb") as opened:
                lines.append(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)
