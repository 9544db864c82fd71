"""Files that are written whole or not at all, and the checksums that show whether they have changed."""

import contextlib
import hashlib
import os
import pathlib
import secrets

PREFIX = ".hmt_jax-part-"  # of temporary files; a killed process leaves one behind


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, which appears under its name only once all of it is on the disk.

    The content is first written to a new file in the same folder, with a random name, so two writers never share that
    file and no symbolic link can redirect it.

    Raises:
      OSError: if there is no space or no permission; it names the path. A former file of that name stays.
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
    except OSError as error:  # which names no file, or the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _sync(folder) -> None:
    """Flushes the names in a folder to the disk, if the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum_line(name: str, content: bytes) -> str:
    """The line that `sha256sum` prints for the content, and that `sha256sum -c` checks."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}"


def checksums(folder: pathlib.Path, *, without: str) -> str:
    """The checksum lines of all files in a folder and its subfolders, except the file of the name `without`."""
    lines = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if (name := file.relative_to(folder).as_posix()) != without:
            with file.open("rb") as opened:
                lines.append(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)
