"""The library's packages, built from this checkout, and fresh environments to install them in."""

import os
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).parent.parent


def build(folder):
    """Builds the source distribution, and the wheel from it, into a folder."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


class Environment:
    """A virtual environment that has all packages of the running one, but for this library.

    The packages are links, so that it is made within a second. pip, in it, finds this library in a folder alone.
    """

    def __init__(self, folder, packages):
        linked = folder / "linked"
        linked.mkdir()
        for entry in sys.path:
            for package in pathlib.Path(entry).glob("*") if entry.endswith("-packages") else ():
                if "hmt_jax" not in package.name and not (linked / package.name).exists():
                    (linked / package.name).symlink_to(package)
        venv.create(folder / "venv", symlinks=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        (site / "linked.pth").write_text(f"{linked}\n")
        self.programs = folder / "venv" / "bin"
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
        self._variables |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(packages),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "MPLBACKEND": "agg",
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, program, *arguments, cwd, **variables):
        """What a program of the environment prints on stdout."""
        command = [self.programs / program, *arguments]
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=cwd, env=self._variables | variables
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout
