"""The command line: `hmt measure`, `show`, `export`, `plot`, `report`, `audit`, `models` and `prepare`.

Each command is a frozen dataclass whose fields are its arguments, with a method `run`. tyro makes the parser from them.
"""

from hmt_jax.cli._main import main

__all__ = ["main"]
