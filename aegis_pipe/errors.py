"""Every error AegisPipe raises, in one tree.

    AegisError
      TransientError            a retry may help
        QueueFullError            the bounded queue has no room
        DeadlineExceededError     the request expired before it could finish
        RequestCancelledError     the caller withdrew the request
        RuntimeStoppedError       the runtime is stopping or has stopped
      PermanentError            the input has to change
        ManifestError             the manifest has problems (all of them are listed)
        InvalidModelError         the file is not a model this runtime can read
        UnsupportedOperatorError  no kernel of the device runs this operator
        DynamicShapeError         an output's shape depends on data
        InvalidInputError         a request's inputs do not fit the model
        BudgetExceededError       the plan does not fit the memory budget
        InvalidLifetimeError      a tensor lifetime can not be planned
        DeviceUnavailableError    the device asked for is not here
        KernelError               a kernel refused its data
        PipelineError             a source, a transform or a sink failed
      FatalError                the process has to end
        DeviceLostError           the device stopped answering

An error carries what happened (`message`), where (`context`) and what to do next (`hint`).
Broken invariants of our own are `assert`ed and are not in this tree.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ErrorCategory(enum.StrEnum):
    """What the caller can do about an error."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    FATAL = "fatal"


class AegisError(Exception):
    """Base of all errors; read `message`, `context` and `hint`, or print it whole."""

    category: ClassVar[ErrorCategory] = ErrorCategory.PERMANENT

    def __init__(self, message: str, *, context: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.context = context
        self.hint = hint

    def __str__(self) -> str:
        """Format as `context: message`, with the hint on a line of its own."""
        where = f"{self.context}: " if self.context else ""
        what_next = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{what_next}"


class TransientError(AegisError):
    """A passing shortage; the same call may succeed later."""

    category = ErrorCategory.TRANSIENT


class QueueFullError(TransientError):
    """The bounded queue has no room; nothing was enqueued."""


class DeadlineExceededError(TransientError):
    """The request's deadline passed before its result was there."""


class RequestCancelledError(TransientError):
    """The request was withdrawn by its caller."""


class RuntimeStoppedError(TransientError):
    """The runtime no longer takes work."""


class PermanentError(AegisError):
    """The same call will always fail; its input has to change."""

    category = ErrorCategory.PERMANENT


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a manifest."""

    file: str
    line: int
    """From 1; 0 if it concerns the file as a whole."""
    column: int
    """From 1, in characters; 0 if it concerns the file as a whole."""
    path: str
    """The key: `models[0].period`; empty if it concerns no key."""
    what: str
    source_line: str = ""
    hint: str = ""

    def __str__(self) -> str:
        """Format as `file:line:col: path: what`, the source line and the hint below."""
        position = f":{self.line}:{self.column}" if self.line else ""
        path = f"{self.path}: " if self.path else ""
        lines = [f"{self.file}{position}: {path}{self.what}"]
        if self.source_line:
            lines.append(f"  {self.source_line}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class ManifestError(PermanentError):
    """The manifest has problems; the message lists every one of them."""

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        context: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, context=context, hint=hint)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> ManifestError:
        """Return the error that lists these problems."""
        return cls("\n".join(map(str, problems)), problems=problems)


class InvalidModelError(PermanentError):
    """The file is damaged, incomplete, or not a model."""


class UnsupportedOperatorError(PermanentError):
    """No kernel of the device runs this operator; names node, operator and alternative."""


class DynamicShapeError(PermanentError):
    """A tensor's shape depends on data that is not known at load."""


class InvalidInputError(PermanentError):
    """A request's inputs do not match the model's names, shapes or dtypes."""


class BudgetExceededError(PermanentError):
    """The memory plan is larger than a budget; names the smallest cause."""


class InvalidLifetimeError(PermanentError, ValueError):
    """A tensor lifetime handed to the planner is impossible: size, interval, alignment or id."""


class DeviceUnavailableError(PermanentError):
    """The device the manifest asks for cannot be opened on this machine."""


class KernelError(PermanentError):
    """A kernel refused the data it was given (an index out of range, say)."""


class PipelineError(PermanentError):
    """A pipeline's source, transform or sink could not do its work."""


class FatalError(AegisError):
    """The process can not go on and has to end."""

    category = ErrorCategory.FATAL


class MemoryOverrunError(FatalError):
    """A kernel wrote outside of its planned memory: what is in memory can not be trusted."""


class DeviceLostError(FatalError):
    """The device failed in a way that can not be recovered in this process."""
