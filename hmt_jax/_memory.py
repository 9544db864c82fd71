"""The memory that a process may use, by the limits of the machine, of its container or job, and of `ulimit`."""

import math
import os
import pathlib
from collections.abc import Iterator

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

_GROUPS = pathlib.Path("/proc/self/cgroup")
_ROOT = pathlib.Path("/sys/fs/cgroup")


def limit() -> float:
    """The number of bytes that this process may use at most; infinite if the system does not say."""
    return min(_of_machine(), _of_address_space(), *_of_groups())


def _of_machine() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _of_address_space() -> float:
    soft = -1 if resource is None else resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if soft < 0 else float(soft)


def _of_groups() -> Iterator[float]:
    """The limits of the control groups of Linux that this process is in, and of those around them."""
    yield math.inf
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # such as 0::/job of version 2, and 4:memory:/job of version 1
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            folder, name = (_ROOT, "memory.max") if not controllers else (_ROOT / "memory", "memory.limit_in_bytes")
            path = folder / group.lstrip("/")
            # Within a container, the path is that of the machine, and the root is the container's own group.
            for each in (path, *path.parents[: len(path.parts) - len(folder.parts)]):
                try:
                    yield float((each / name).read_text().strip().replace("max", "inf"))
                except (OSError, ValueError):
                    continue
