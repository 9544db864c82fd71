"""Bars in the terminal that show how far something is."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(unit: str, description: str | None = None) -> Iterator[Callable[..., None]]:
    """A callback that shows the number of things that are finished, their rate and the time left on stderr.

    It takes that number, the number of all things, and texts by name to show beside them. If stderr is no terminal,
    nothing is shown.

    Args:
      unit: what is counted, in the plural.
      description: what is going on.
    """
    import tqdm

    shown: tqdm.tqdm | None = None
    is_terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(number: int, total: int, **beside: str) -> None:
        nonlocal shown
        if shown is None:  # what an earlier call has finished does not count in the rate
            shown = tqdm.tqdm(
                total=total,
                initial=number,
                desc=description,
                unit=f" {unit}",
                dynamic_ncols=True,
                disable=not is_terminal,
            )
        if beside:
            shown.set_postfix(beside, refresh=False)
        shown.update(number - shown.n)
        if number == total:  # warnings that follow have lines of their own
            shown.close()

    try:
        yield show
    finally:
        if shown is not None:
            shown.close()
