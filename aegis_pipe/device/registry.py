"""The table of devices, and the one way to open one.

A device is a folder beside this file with an `open_context` function, and one line in
`DEVICE_KINDS`. Its module is imported when it is opened, not before: importing AegisPipe never
imports CUDA.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import DeviceUnavailableError

AUTO = "auto"
"""Stands for the first kind of the table that can be opened."""


class OpenContext(Protocol):
    """What a device's module offers under the name `open_context`."""

    def __call__(self, *, index: int, clock: Clock, threads: int) -> DeviceContext:
        """Open device `index`; raises DeviceUnavailableError with what was looked for."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """One line of the table."""

    name: str
    """As in the manifest's `kind`."""
    module: str
    """Imported on opening; has an `open_context` (see `OpenContext`)."""
    summary: str
    """One line of help."""


# In the order in which `auto` tries them.
DEVICE_KINDS = (
    DeviceKind("cuda", "aegis_pipe.device.cuda", "an NVIDIA GPU"),
    DeviceKind("cpu", "aegis_pipe.device.cpu.context", "the processor and its memory"),
)


@dataclass(frozen=True, slots=True)
class OpenedDevice:
    """An open device and why it was this one."""

    context: DeviceContext
    reason: str


def device_kinds(kinds: Sequence[DeviceKind] = DEVICE_KINDS) -> dict[str, str]:
    """Return every value that `kind` may have, with one line of help each."""
    tried = ", ".join(kind.name for kind in kinds)
    return {kind.name: kind.summary for kind in kinds} | {
        AUTO: f"the first of {tried} that this machine has"
    }


def open_device(
    kind: str,
    *,
    index: int = 0,
    clock: Clock,
    threads: int = 1,
    kinds: Sequence[DeviceKind] = DEVICE_KINDS,
) -> OpenedDevice:
    """Open a device; the caller closes its context.

    Only `auto` ever falls back, and its reason says from what and why. `threads` is the number of
    host threads one kernel may use. Raises DeviceUnavailableError.
    """
    if kind == AUTO:
        return _open_first(kinds, index, clock, threads)
    found = next((entry for entry in kinds if entry.name == kind), None)
    if found is None:
        raise _unknown(kind, kinds)
    context = _opener(found)(index=index, clock=clock, threads=threads)
    return OpenedDevice(context, f"`{kind}` was asked for")


def _open_first(
    kinds: Sequence[DeviceKind], index: int, clock: Clock, threads: int
) -> OpenedDevice:
    refusals: list[str] = []
    for kind in kinds:
        try:
            context = _opener(kind)(index=index, clock=clock, threads=threads)
        except DeviceUnavailableError as error:
            refusals.append(f"{kind.name} is not available: {error.message}")
        else:
            reason = "; ".join((f"`{AUTO}` chose {kind.name}", *refusals))
            return OpenedDevice(context, reason)
    raise DeviceUnavailableError(
        "; ".join(refusals), context=AUTO, hint="name the device to see what to do about it"
    )


def _opener(kind: DeviceKind) -> OpenContext:
    return cast(OpenContext, importlib.import_module(kind.module).open_context)


def _unknown(kind: str, kinds: Sequence[DeviceKind]) -> DeviceUnavailableError:
    known = list(device_kinds(kinds))
    near = difflib.get_close_matches(kind, known, n=1)
    return DeviceUnavailableError(
        f"there is no kind of device named `{kind}`",
        hint=f"did you mean `{near[0]}`?" if near else f"kinds are {', '.join(known)}",
    )
