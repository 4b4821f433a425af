"""Between the tables of a TOML file and the sections of `model.py`, by their type hints.

A field is its key with the unit of the value behind it: `period_ns` is the key `period`, written
as a duration. Tables of several kinds are told apart by their `kind`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from aegis_pipe.manifest.model import Manifest
from aegis_pipe.units import (
    exact_size,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
    parse_size,
)

Table = dict[str, Any]


class _Unit(NamedTuple):
    parse: Callable[[str], float]
    format: Callable[[Any], str]


_UNITS: Mapping[str, _Unit] = {
    "_bytes": _Unit(parse_size, exact_size),
    "_ns": _Unit(parse_duration, format_duration),
    "_per_s": _Unit(parse_rate, format_rate),
}
_NOT_KEYS = {"directory", "stem"}


class SectionField(NamedTuple):
    """A field of a section with its key in the file."""

    name: str
    key: str
    unit: _Unit | None
    hint: Any
    default: Any
    """`dataclasses.MISSING` for a key that has to be there."""


@cache
def section_fields(section: type) -> tuple[SectionField, ...]:
    """Return the fields of a section's class that are keys of the file, in order."""
    hints = typing.get_type_hints(section)
    return tuple(
        SectionField(field.name, *_key_of(field.name), hints[field.name], _default_of(field))
        for field in dataclasses.fields(section)
        if field.name not in _NOT_KEYS
    )


def _key_of(name: str) -> tuple[str, _Unit | None]:
    for suffix, unit in _UNITS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), unit
    return name, None


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


# --- from tables --------------------------------------------------------------------------------


def manifest_from_table(table: Table, directory: Path, stem: str = "") -> Manifest:
    """Build the manifest from a table that has passed every check."""
    manifest = _section(Manifest, table)
    assert isinstance(manifest, Manifest), "a manifest's table makes a manifest"
    return dataclasses.replace(manifest, directory=directory, stem=stem)


def _section(section: type, table: Table) -> object:
    if "transform" in table:
        table = {**table, "transform": {"kind": table["transform"], **table.get("with", {})}}
    values = {
        field.name: field.unit.parse(value) if field.unit else _value(field.hint, value)
        for field in section_fields(section)
        if (value := table.get(field.key)) is not None
    }
    return section(**values)


def _value(hint: Any, value: Any) -> Any:
    """Convert a value of the file to what a field's type hint says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return _alternative([other for other in arguments if other is not types.NoneType], value)
    if dataclasses.is_dataclass(hint):
        return _section(typing.cast(type, hint), value)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_value(arguments[0], item) for item in items)
    if isinstance(value, dict):
        return {key: _value(arguments[1], item) for key, item in value.items()}
    return float(value) if hint is float else value


def _alternative(hints: list[Any], value: Any) -> Any:
    if len(hints) == 1:
        return _value(hints[0], value)
    if isinstance(value, dict):
        section = next(hint for hint in hints if hint.kind == value["kind"])
        return _section(section, value)
    return _nested(value)


def _nested(value: Any) -> Any:
    return tuple(map(_nested, value)) if isinstance(value, list) else value


# --- to tables ----------------------------------------------------------------------------------


def manifest_to_table(manifest: Manifest) -> Table:
    """Return the manifest as tables for TOML; keys that have their default are left out."""
    return {"manifest_version": manifest.manifest_version, **_table(manifest)}


def _table(section: Any) -> Table:
    kind = getattr(type(section), "kind", None)
    # A string belongs to the class; a device's `kind` is a field of its own.
    table: Table = {"kind": kind} if isinstance(kind, str) else {}
    section_type: type = type(section)
    for field in section_fields(section_type):
        value = getattr(section, field.name)
        if value != field.default:
            table[field.key] = field.unit.format(value) if field.unit else _plain(value)
    if "transform" in table:
        transform = table["transform"]
        kind, parameters = transform.pop("kind"), transform
        table = {**table, "transform": kind} | ({"with": parameters} if parameters else {})
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _table(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
