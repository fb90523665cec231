"""Bounds that many knobs share."""

from dataclasses import fields, is_dataclass
from math import inf, isfinite

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


def some_left(prefix: str, held_out: float) -> None:
    if held_out == 1:
        raise InputError(f"{prefix}.held_out={held_out} leaves nothing to train on; try {prefix}.held_out=0.1")


# A knob below 0 means something: a number to look up, the totals of rankings.
_SIGNED = ("why.id", "hfft.at_least", "cohft.at_least")
_WHOLE, _REAL, _SECONDS = 2**48, 1e30, 1e8  # the largest that anything can count, compute with, or wait for


def numbers(section: object, prefix: str = "") -> None:
    """Raise `InputError` for a number of `section`, or of one within it, that no knob can have: one that is not finite,
    too large to be meant, or below 0 where that has no sense."""
    for field in fields(section):  # type: ignore[arg-type]
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            numbers(value, f"{name}.")
        elif isinstance(value, dict):
            for key, one in value.items():
                _number(f"{name}.{key}", one, signed=True)
        elif isinstance(value, int | float):
            _number(name, value, signed=name in _SIGNED)


def _number(name: str, value: object, *, signed: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not isfinite(value):
        raise InputError(f"{name}={value} must be a finite number")
    waits = name.endswith(("timeout", "wait", "within"))
    most = _WHOLE if isinstance(value, int) else _SECONDS if waits else _REAL
    if abs(value) > most:
        raise InputError(f"{name}={value} must be at most {most:g}")
    if value < 0 and not signed:
        raise InputError(f"{name}={value} must not be negative")
