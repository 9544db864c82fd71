"""Packages that only some of the library needs."""

import importlib.util


def require(purpose: str, extra: str, *modules: str) -> None:
    """Makes sure that modules are there before what needs them begins.

    Raises:
      ModuleNotFoundError: that names the extra which brings them.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"{purpose} can't be had without {', '.join(missing)}: pip install 'hmt-jax[{extra}]', or '.[{extra}]' in "
            "a checkout",
            name=missing[0],
        )
