"""`python -m hmt_jax` is the command `hmt`."""

import sys

from hmt_jax.cli import main

sys.exit(main(program="python -m hmt_jax"))
