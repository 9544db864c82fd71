"""Checks of the numbers that users give."""

import operator


def whole_number(argument: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{argument} must be a whole number, got {value!r}") from None
