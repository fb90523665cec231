"""Numbers as the report shows them."""

import math


def number(value: float, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):{sign},}"
    return f"{value:{sign}.3g}" if abs(value) < 1000 else f"{value:{sign},.0f}"
