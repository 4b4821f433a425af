"""Sizes, durations and rates as people write them: `"512 MiB"`, `"20 ms"`, `"30/s"`.

Inside, sizes are int bytes, durations int nanoseconds and rates float per second. `parse_*`
raise ValueError with a text that says what was expected; `exact_size` and `format_duration` write
the shortest text that parses back to exactly the same value, `format_size` four digits for a
reader. Arithmetic is in fractions, so `"0.1 ms"` is 100000
nanoseconds and not nearly so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from itertools import chain

SIZE_UNITS: Mapping[str, Fraction] = {
    "B": Fraction(1),
    "kB": Fraction(10**3),
    "MB": Fraction(10**6),
    "GB": Fraction(10**9),
    "KiB": Fraction(2**10),
    "MiB": Fraction(2**20),
    "GiB": Fraction(2**30),
}
"""Bytes per unit."""

DURATION_UNITS: Mapping[str, Fraction] = {
    "ns": Fraction(1),
    "us": Fraction(10**3),
    "ms": Fraction(10**6),
    "s": Fraction(10**9),
    "min": Fraction(60 * 10**9),
    "h": Fraction(3600 * 10**9),
}
"""Nanoseconds per unit."""

RATE_UNITS: Mapping[str, Fraction] = {
    "/h": Fraction(1, 3600),
    "/min": Fraction(1, 60),
    "/s": Fraction(1),
    "/ms": Fraction(1000),
}
"""Events per second, per unit."""

MAX_WHOLE = 2**63 - 1
"""Largest size in bytes and duration in nanoseconds: what an int64 holds, 292 years."""

MAX_RATE_PER_S = 10**9
"""Largest rate: one a nanosecond, the finest the clock can tell."""

_READABLE = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)

# What people write for units that are named otherwise here; the first that fits the family.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "us": ("\N{MICRO SIGN}s", "\N{GREEK SMALL LETTER MU}s", "usec"),
    "ms": ("msec", "milliseconds"),
    "s": ("sec", "second", "seconds"),
    "min": ("m", "mins", "minute", "minutes"),
    "h": ("hr", "hour", "hours"),
    "B": ("byte", "bytes"),
    "KiB": ("k", "kb"),
    "MiB": ("m", "mb"),
    "GiB": ("g", "gb"),
    "/s": ("fps", "hz", "/sec", "/second"),
    "/min": ("rpm", "/minute", "/m"),
}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `"512 MiB"`; fractions must come out as whole bytes."""
    return _parse_whole(text, "a size", SIZE_UNITS, '"512 MiB"')


def parse_duration(text: str) -> int:
    """Return the nanoseconds of a duration such as `"20 ms"`; `"0 ms"` is one, too."""
    return _parse_whole(text, "a duration", DURATION_UNITS, '"20 ms"')


def parse_rate(text: str) -> float:
    """Return the events per second of a rate such as `"30/s"`; zero is not a rate."""
    rate = float(_parse(text, "a rate", RATE_UNITS, '"30/s"'))
    if rate == 0:
        raise ValueError(f'a rate must be above zero, found "{text}"')
    if rate > MAX_RATE_PER_S:
        raise ValueError(f'"{text}" is too fast; the limit is {MAX_RATE_PER_S}/s')
    return rate


def format_size(size_bytes: int) -> str:
    """Return a size for a reader, in four significant digits at most: `"117.7 MiB"`."""
    value, unit = float(size_bytes), 0
    # 1023.95 would be written as "1024": one of the next unit is what is meant.
    while abs(value) >= 1023.95 and unit < len(_READABLE) - 1:
        value, unit = value / 1024, unit + 1
    digits = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{digits} {_READABLE[unit]}"


def exact_size(size_bytes: int) -> str:
    """Return a size in the largest binary unit that leaves it whole: `"512 MiB"`."""
    binary = {unit: SIZE_UNITS[unit] for unit in ("B", "KiB", "MiB", "GiB")}
    return _format_whole(size_bytes, binary) if size_bytes else "0 B"


def format_duration(duration_ns: int) -> str:
    """Return a duration in the largest unit that leaves it whole: `"20 ms"`."""
    return _format_whole(duration_ns, DURATION_UNITS) if duration_ns else "0 ms"


def format_rate(rate_per_s: float) -> str:
    """Return a rate in the unit that makes its number shortest: `"30/s"`, `"10/min"`."""
    numbers = {unit: _plain(rate_per_s / RATE_UNITS[unit]) for unit in ("/s", "/min", "/h")}
    exact = [unit for unit in numbers if _is_exact(numbers[unit] + unit, rate_per_s)]
    best = min(exact, key=lambda unit: len(numbers[unit]))
    return numbers[best] + best


def _is_exact(text: str, rate_per_s: float) -> bool:
    return float(_parse(text, "a rate", RATE_UNITS, "")) == rate_per_s


def _plain(number: float) -> str:
    """Write a number without exponent, in the digits that give the same float back."""
    return f"{Decimal(repr(number)):f}".removesuffix(".0")


def _format_whole(value: int, units: Mapping[str, Fraction]) -> str:
    unit = max((unit for unit in units if value % units[unit] == 0), key=lambda unit: units[unit])
    return f"{int(value / units[unit])} {unit}"


def _parse_whole(text: str, what: str, units: Mapping[str, Fraction], example: str) -> int:
    base = "bytes" if units is SIZE_UNITS else "nanoseconds"
    value = _parse(text, what, units, example)
    if value.denominator != 1:
        raise ValueError(f'"{text}" is not a whole number of {base}')
    if value > MAX_WHOLE:
        raise ValueError(f'"{text}" is too large; the limit is 2^63 - 1 {base}')
    return int(value)


def _parse(text: str, what: str, units: Mapping[str, Fraction], example: str) -> Fraction:
    """Return the value in base units, exactly. `units` maps each unit to base units."""
    expected = f"expected {what} such as {example}"
    stripped = text.strip()
    if not stripped:
        raise ValueError(f"{expected}, found an empty string")
    if stripped.startswith("-"):
        raise ValueError(f'{what} can not be negative, found "{text}"')
    number = _NUMBER.match(stripped)
    if number is None:
        raise ValueError(f'{expected}, found "{text}"')
    unit = stripped[number.end() :].strip()
    if not unit:
        raise ValueError(f'"{text}" has no unit; {expected}')
    if unit not in units:
        raise ValueError(f'"{text}": {_unknown_unit(unit, units)}')
    return Fraction(number.group()) * units[unit]


def _unknown_unit(unit: str, units: Mapping[str, Fraction]) -> str:
    known = f"units are {', '.join(units)}"
    same_letters = (name for name in units if name.lower() == unit.lower())
    aliased = (name for name in units if unit.lower() in _ALIASES.get(name, ()))
    near = next(chain(same_letters, aliased, difflib.get_close_matches(unit, units, n=1)), None)
    return f"unknown unit `{unit}`; " + (f"did you mean `{near}`?" if near else known)
