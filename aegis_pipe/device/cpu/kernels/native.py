"""The compiled kernels: which library is loaded, and how one of its functions becomes a call.

The library is compiled from `c/` when the package is built (`tools/hatch_build.py`), once for each
instruction set; the best one that the processor has is loaded at import. Without a library
`LIBRARY` is None, the compiled families offer nothing, and the NumPy kernels do their work.

A bound kernel is a `Step`, the address of a function and of its arguments. One step runs through
`NativeCall`; `run_steps` runs many with one call out of Python. Both release the GIL.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aegis_pipe.errors import AegisError

FOLDER = Path(__file__).parent / "lib"
POINTER = ctypes.c_void_p
INTEGER = ctypes.c_int64
FLOAT = ctypes.c_float
"""What the fields of the functions' arguments are."""


_SHARED_COST_MIN = 100_000
"""Below this a kernel is over before a team of threads has met."""
_TOGETHER_COST_MIN = 2_000_000
"""Below this a stretch of kernels is over before a sleeping thread has woken up."""
_LINE_BYTES = 64
HIGHEST_BYTE_UNIT = 2
"""Of the units of `c/byte_products.c`, the last one."""


class Step(ctypes.Structure):
    """`step` of `c/step.h`: a function of the library and its arguments, both by address."""

    _fields_ = (
        *(("function", POINTER), ("arguments", POINTER), ("shares", INTEGER)),
        *(("refused", POINTER), ("refusals", INTEGER)),
    )


class NativeLibrary:
    """One loaded library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._functions: dict[str, tuple[int | None, int, int]] = {}
        self.name = path.stem
        """`x86_64_v4`."""
        self._library.aegis_isa_level.restype = INTEGER
        self.isa_level = int(self._library.aegis_isa_level())
        """Level of the processor, not of the library; 0 where there are no levels."""
        self.panel_columns = self._integer("aegis_panel_columns")
        """Columns of one panel of a packed operand."""
        self.tile_rows = self._integer("aegis_tile_rows")
        self.run = self._library.aegis_run
        """run(address of steps, count, address of int64[count, 2] or None)."""
        self.run.argtypes = (POINTER, INTEGER, POINTER)
        self.run.restype = None
        self._open_team = self._library.aegis_open_team
        self._open_team.argtypes = (INTEGER, POINTER)
        self._open_team.restype = INTEGER
        self.close_team = self._library.aegis_close_team
        self.close_team.argtypes = ()
        self.close_team.restype = None
        self.pack_panels = self._library.aegis_pack_panels
        self.pack_panels.argtypes = (POINTER, *(INTEGER,) * 4, POINTER)
        self.pack_panels.restype = None
        self.gemm_workspace = self._library.aegis_gemm_workspace
        """gemm_workspace(rows, columns, depth, B is not packed): floats for one thread."""
        self.gemm_workspace.argtypes = (INTEGER,) * 4
        self.gemm_workspace.restype = INTEGER
        self.pack_taps = self._library.aegis_pack_taps
        self.pack_taps.argtypes = (POINTER, *(INTEGER,) * 4, POINTER)
        self.pack_taps.restype = None
        self.pack_winograd = self._library.aegis_pack_winograd
        self.pack_winograd.argtypes = (POINTER, *(INTEGER,) * 3, POINTER)
        self.pack_winograd.restype = None
        self.winograd_workspace = self._library.aegis_winograd_workspace
        """winograd_workspace(m, depth, block): floats for one thread."""
        self.winograd_workspace.argtypes = (INTEGER,) * 3
        self.winograd_workspace.restype = INTEGER
        self.pack_byte_panels = self._library.aegis_pack_byte_panels
        self.pack_byte_panels.argtypes = (POINTER, *(INTEGER,) * 5, POINTER)
        self.pack_byte_panels.restype = None
        self.byte_unit = self.choose_byte_unit(HIGHEST_BYTE_UNIT)
        """Instructions for products of bytes, see `c/byte_products.c`."""

    def open_team(self, threads: int) -> np.ndarray:
        """Give the calling thread a team of so many, itself included, until `close_team`.

        The memory it returns is the team's; keep it.
        """
        memory = np.zeros(self._integer("aegis_team_bytes") + 64, np.uint8)
        self._open_team(threads, memory.ctypes.data + -memory.ctypes.data % 64)
        return memory

    def step(self, function: str, arguments: ctypes.Structure) -> Step:
        """Bind a function to its arguments, which have to outlive the step."""
        if function not in self._functions:
            self._functions[function] = (
                self.address_of(function),
                self._constant(f"{function}_arguments_bytes"),
                self._constant(f"{function}_shares"),
            )
        address, size, shares = self._functions[function]
        assert size == ctypes.sizeof(arguments), f"{function} takes {size} bytes of arguments"
        return Step(address, ctypes.addressof(arguments), shares)

    def address_of(self, function: str) -> int | None:
        """Return where a function is: for kernels that call it."""
        return ctypes.cast(getattr(self._library, function), POINTER).value

    def _constant(self, name: str) -> int:
        return ctypes.c_int64.in_dll(self._library, name).value

    def choose_byte_unit(self, highest: int) -> int:
        """Use the best unit up to `highest` that the processor has too; return its number."""
        return self._integer("aegis_choose_byte_unit", highest)

    def byte_panels_size(self, depth: int, columns: int) -> int:
        """Return the bytes of a packed 8-bit matrix."""
        return self._integer("aegis_byte_panels_size", depth, columns)

    def byte_gemm_workspace(self, depth: int, columns: int, b_is_plain: bool) -> int:
        """Return the bytes of workspace that a product of 8-bit matrices wants."""
        return self._integer("aegis_byte_gemm_workspace", depth, columns, b_is_plain)

    def block_product_workspace(self, rows: int, block: int) -> int:
        """Return the floats of workspace of a product with weights quantised in blocks."""
        return self._integer("aegis_block_product_workspace", rows, block)

    def byte_recurrence_workspace(
        self, time: int, batch: int, inputs: int, hidden: int, width: int
    ) -> int:
        """Return the bytes of workspace that a recurrent layer's products of bytes want."""
        function = "aegis_byte_recurrence_workspace"
        return self._integer(function, time, batch, inputs, hidden, width)

    def size_for(self, function: str, arguments: ctypes.Structure) -> int:
        """Return what a function says of a kernel's arguments: the bytes of its workspace."""
        return self._integer(function, ctypes.addressof(arguments))

    def _integer(self, name: str, *arguments: int) -> int:
        function = getattr(self._library, name)
        function.restype = INTEGER
        return int(function(*map(INTEGER, arguments)))


def load() -> tuple[NativeLibrary | None, str]:
    """Return the best library for this processor, and a sentence about it."""
    machine = platform.machine()
    baseline = FOLDER / ("x86_64_v2.so" if machine == "x86_64" else f"{machine}.so")
    if not baseline.exists():
        return None, f"not built for {platform.system()} on {machine}; NumPy kernels do the work"
    try:
        library = NativeLibrary(baseline)
        if library.isa_level > 2:
            library = NativeLibrary(FOLDER / f"x86_64_v{library.isa_level}.so")
    except OSError as error:
        return None, f"not loaded: {error}; NumPy kernels do the work"
    return library, f"compiled for {library.name}"


LIBRARY, STATUS = load()


class NativeCall:
    """A bound kernel of the library; calling it runs it once."""

    __slots__ = ("_address", "_kept", "_run", "noted", "shared_cost", "step")

    def __init__(
        self,
        library: NativeLibrary,
        function: str,
        arguments: ctypes.Structure,
        kept: Sequence[object] = (),
    ) -> None:
        self.step = library.step(function, arguments)
        self._address = ctypes.addressof(self.step)
        self._run = library.run
        self.shared_cost = 0.0
        """Of the work that a team would share."""
        self.noted: Callable[[], AegisError | None] | None = None
        """Returns, once, what the kernel found wrong with its operands' values."""
        # The step holds addresses only: the arguments and what they point to live here.
        self._kept: tuple[object, ...] = (arguments, *kept)

    def keep(self, something: object) -> None:
        """Keep what the arguments point to alive as long as the call."""
        self._kept = (*self._kept, something)

    def weigh(self, cost: float) -> None:
        """Say how much work it is, so that a team does not share what is over before it has met."""
        if cost < _SHARED_COST_MIN:
            self.step.shares = 0
        self.shared_cost = cost if self.step.shares else 0.0

    def may_refuse(
        self, refused: ctypes.Array[ctypes.c_int64], noted: Callable[[], AegisError | None]
    ) -> None:
        """Say where the kernel notes what is wrong with its operands' values, and what tells of it.

        `refused` holds zeros as long as nothing is wrong; `noted` sets it back.
        """
        self.step.refused, self.step.refusals = ctypes.addressof(refused), len(refused)
        self.noted = noted

    def __call__(self) -> None:
        """Run the kernel."""
        self._run(self._address, 1, None)
        if self.noted is not None:
            _raise_first((self.noted,))


def call(function: str, arguments: ctypes.Structure, kept: Sequence[object] = ()) -> NativeCall:
    """Bind a function of the loaded library, which was there when the kernel was chosen."""
    assert LIBRARY is not None, function
    return NativeCall(LIBRARY, function, arguments, kept)


class NativeBatch:
    """Bound kernels run one after the other by a single call out of Python.

    None stands for a call that has nothing to do; it has a row of stamps like any other. If all
    that a team could share would be done before its threads were awake, they are left asleep. What
    a kernel noted is raised, and those behind it are not run: they may write what is kept.
    """

    __slots__ = ("_address", "_kept", "_noted", "_run", "_steps")

    def __init__(self, library: NativeLibrary, calls: Sequence[NativeCall | None]) -> None:
        self._kept = tuple(calls)
        self._steps = (Step * len(calls))(*(call.step if call else Step() for call in calls))
        if sum(call.shared_cost for call in calls if call) < _TOGETHER_COST_MIN:
            for step in self._steps:
                step.shares = 0
        self._address = ctypes.addressof(self._steps)
        self._noted = tuple([call.noted for call in calls if call and call.noted])
        self._run = library.run

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self) -> None:
        """Run them all."""
        self._run(self._address, len(self._kept), None)
        if self._noted:
            _raise_first(self._noted)

    def run_stamped(self, stamps_address: int) -> None:
        """Run them all; write start and end of each, CLOCK_MONOTONIC ns, to int64[len, 2]."""
        self._run(self._address, len(self._kept), stamps_address)
        if self._noted:
            _raise_first(self._noted)


def _raise_first(noted: Sequence[Callable[[], AegisError | None]]) -> None:
    """Raise the first of what kernels noted; the others are forgotten with it."""
    first = None
    for ask in noted:
        error = ask()
        first = first or error
    if first is not None:
        raise first


def meeting_place() -> tuple[np.ndarray, int]:
    """Return memory to keep, and in it where workers meet: a line to itself, as all watch it."""
    lines = np.zeros(2 * _LINE_BYTES, np.uint8)
    return lines, lines.ctypes.data + -lines.ctypes.data % _LINE_BYTES


def address(array: np.ndarray | None) -> int | None:
    """Return where an array's elements are; None for None."""
    if array is None:
        return None
    try:
        # A third of what `array.ctypes` takes, and asked several times for every kernel.
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # arrays are buffers
    except (TypeError, ValueError, BufferError):
        # Read-only, empty, not contiguous, or of a dtype that buffers lack.
        return array.ctypes.data
