"""Bounds that many knobs share."""

from math import inf

from conf.errors import InputError


def positive(prefix: str, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if not 0 < value < inf:
            raise InputError(f"{prefix}.{name}={value} must be greater than 0")


def share(prefix: str, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1:
            raise InputError(f"{prefix}.{name}={value} must lie in [0, 1]")
