"""Quantities with units: reading them from text, and showing them.

Prefixes follow the IEC and SI: ``GiB`` is 2**30 bytes, ``GB`` is 1e9 bytes.
"""

from __future__ import annotations

import difflib
import math
import re

from autopar.core.errors import ClusterError

_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_PREFIXES = {**_DECIMAL, **_BINARY}

UNITS: dict[str, dict[str, float]] = {
    "bytes": {
        **{f"{prefix}B": factor for prefix, factor in _PREFIXES.items()},
        "bytes": 1.0,
    },
    "bytes/s": {
        **{f"{prefix}B/s": factor for prefix, factor in _PREFIXES.items()},
        **{f"{prefix}b/s": factor / 8 for prefix, factor in _DECIMAL.items()},
        **{f"{prefix}bit/s": factor / 8 for prefix, factor in _DECIMAL.items()},
    },
    "FLOP/s": {
        **{f"{prefix}FLOP/s": factor for prefix, factor in _DECIMAL.items()},
        **{f"{prefix}FLOPS": factor for prefix, factor in _DECIMAL.items()},
    },
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
}
"""For each dimension, every unit that is understood and its size in the dimension's base unit."""


def parse_quantity(value: object, dimension: str, key: str) -> float:
    """Reads a quantity such as ``"45 GB/s"``; a bare number is in the base unit ``dimension``.

    Raises:
      ClusterError: not a number, an unknown unit, or a negative value; the text names ``key``.
    """
    units = UNITS[dimension]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number, unit = float(value), None
    else:
        match = re.fullmatch(r"\s*([-+]?[\d_.]+(?:[eE][-+]?\d+)?)\s*(.*?)\s*", str(value))
        if match is None or not isinstance(value, str):
            raise ClusterError(
                f"{key}: {value!r} is not a quantity; write e.g. {_example(dimension)}"
            )
        try:
            number = float(match[1])
        except ValueError:
            raise ClusterError(
                f"{key}: {match[1]!r} is not a number; write e.g. {_example(dimension)}"
            ) from None
        unit = match[2] or None
    if unit is not None and unit not in units:
        near = difflib.get_close_matches(unit, units, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ClusterError(
            f"{key}: unknown unit {unit!r} in {value!r}{hint} (write e.g. {_example(dimension)})"
        )
    if not math.isfinite(number) or number < 0:
        raise ClusterError(f"{key}: {value!r} is negative or not finite")
    return number * (units[unit] if unit is not None else 1.0)


def parse_bytes(value: int | float | str, key: str = "memory") -> int:
    """A count of bytes from ``14``, ``"14GiB"`` or ``"1.5e9 B"``; at least one byte.

    Raises:
      ClusterError: the text is not a positive amount of memory.
    """
    count = int(parse_quantity(value, "bytes", key))
    if count < 1:
        raise ClusterError(f"{key}: {value!r} is no memory at all; write e.g. '14GiB'")
    return count


def format_bytes(count: float) -> str:
    """Bytes with a binary prefix and three significant digits: ``1.50 GiB``."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size * 0.9995:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Seconds with the fitting unit and three significant digits: ``23.3 us``."""
    if math.isinf(seconds) or math.isnan(seconds):
        return str(seconds)
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size * 0.9995:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns" if seconds else "0 s"


def _three_digits(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}"


def _example(dimension: str) -> str:
    return {
        "bytes": "'14GiB'",
        "bytes/s": "'45 GB/s'",
        "FLOP/s": "'197 TFLOP/s'",
        "s": "'1 us'",
    }[dimension]
