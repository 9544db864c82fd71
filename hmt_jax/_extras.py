"""Optional packages, which only parts of the library need."""

import importlib.util


def require(purpose: str, extra: str, *modules: str) -> None:
    """Makes sure that modules are installed, before any work that needs them.

    Raises:
      ModuleNotFoundError: if one is missing; it names the extra that installs it.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"{purpose} can't be used without {', '.join(missing)}: pip install 'hmt-jax[{extra}]', or '.[{extra}]' in "
            "a checkout",
            name=missing[0],
        )
