"""The files of a store, which TensorStore reads and writes in a folder or in a bucket."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hmt_jax import _paths

# The limit for the first file of a store. For later ones, TensorStore tries for about a quarter of an hour, so that a
# measurement outlasts a gap in the network.
SECONDS_TO_OPEN = 15

_REMEDIES = {
    "opened": "pass a folder, or an address that TensorStore knows, such as gs://bucket/margins.zarr",
    "reached": "check the address, the network and your credentials",
    "read": "make sure that it can be reached and that you may read it",
    "written": "make sure that there is space and that you may write there",
}


class Files:
    """The files below a path. All errors are OSErrors that name it.

    Attributes:
      path: an address, or the absolute path of a folder.
    """

    def __init__(self, path: str | os.PathLike[str]):
        text = _paths.expand("path", path)
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = _paths.shown(text)
            raise ValueError(f"path is {shown}, but TensorStore takes only names in UTF-8: rename it") from None
        self.path = text if "://" in text else os.path.abspath(text)
        folder = self.path.rstrip("/") + "/"
        with self.errors("opened"):
            spec = folder if "://" in text else {"driver": "file", "path": folder}
            self._files = _tensorstore().KvStore.open(spec).result()

    def names(self, prefix: str = "") -> list[str]:
        """The names of all files, or of those that begin with a prefix."""
        with self.errors("read"):
            keys = _tensorstore().KvStore.KeyRange(prefix, prefix and prefix[:-1] + chr(ord(prefix[-1]) + 1))
            return [key.decode() for key in self._files.list(keys).result()]

    def read(self, *names: str, seconds: float | None = None) -> list[bytes | None]:
        """The contents of files, None for those that are not there; an error if it takes longer than `seconds`."""
        with self.errors("read"):
            found = [future.result(seconds) for future in [self._files.read(name) for name in names]]
        return [each.value if each.state == "value" else None for each in found]

    def write(self, contents: Mapping[str, bytes | None]) -> None:
        """Writes files, in place of what was there; removes those whose content is None."""
        # TensorStore writes into the lock file that a killed process left. If that file is longer than the content, its
        # end stays. The second time, the lock file is new.
        for _ in range(2):
            with self.errors("written"):
                for future in [self._files.write(name, content) for name, content in contents.items()]:
                    future.result()
            if self.read(*contents) == [*contents.values()]:
                break

    def create(self, name: str, content: bytes) -> bool:
        """Writes a new file and returns whether it was new. If several processes try, only one makes the file."""
        with self.errors("written"):
            found = self._files.read(name).result()
            if found.state == "value":
                return False
            written = self._files.write(name, content, if_equal=found.stamp.generation).result()
        if not written.generation:  # there is another file by now
            return False
        if self.read(name) != [content]:
            self.write({name: content})
        return True

    def array(self, name: str, metadata: dict[str, Any]) -> Any:
        """An array of TensorStore."""
        # The metadata are known, so damaged ones do no harm. Chunks of fill values are written like all others, so
        # a chunk without a file is damaged.
        spec = {
            "driver": "zarr3",
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }
        return _tensorstore().open(spec, kvstore=self._files / f"{name}/", open=True, assume_metadata=True).result()

    @contextlib.contextmanager
    def errors(self, done: str, remedy: str = "") -> Iterator[None]:
        """A context in which TensorStore's errors become OSErrors, which say what could not be done."""
        try:
            yield
        except (ValueError, RuntimeError, TimeoutError) as error:  # TensorStore has no class of its own
            is_late = isinstance(error, TimeoutError)
            done, reason = ("reached", "it does not answer") if is_late else (done, _reason(error))
            raise OSError(f"{self.path} can't be {done} ({reason}): {_REMEDIES[done]}{remedy}") from error


def is_damage(error: ValueError) -> bool:
    """Whether an error of TensorStore is about what a file holds: another checksum or length, or no file at all."""
    codes = ("DATA_LOSS", "FAILED_PRECONDITION", "NOT_FOUND")
    return str(error).startswith(codes) and "os_error_code" not in str(error)


def _reason(error: BaseException) -> str:
    """The message of TensorStore, without its codes and the specification that it appends."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return re.sub("^[A-Z_]+: ", "", _paths.reason(error)).partition(" [")[0]


def _tensorstore() -> Any:
    import tensorstore  # here, because its import takes as long as a quarter of this library's

    return tensorstore
