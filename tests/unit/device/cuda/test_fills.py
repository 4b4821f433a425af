"""Kernels in place of fills: which are replaced, and by what."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

driver = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import fills  # noqa: E402
from aegis_pipe.device.cuda.fills import Fills, word_of  # noqa: E402


class Compiler:
    """Knows one kernel."""

    def function(self, source: str, shared_bytes: int = 0, entry: str = "k") -> int:
        assert f" {entry}(" in source
        return 77


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 120])
def test_the_kernel_compiles(capability: int) -> None:
    image = driver.compile_cubin(fills.SOURCE, f"sm_{capability}")
    assert b"aegis_fill" in image


@pytest.mark.parametrize(
    ("value", "element_bytes", "word"),
    [
        (0, 1, 0),
        (0xAB, 1, 0xABABABAB),
        (0x1AB, 1, 0xABABABAB),
        (0xBEEF, 2, 0xBEEFBEEF),
        (0x12345678, 4, 0x12345678),
        (0xFFFFFFFF, 4, 0xFFFFFFFF),
    ],
)
def test_what_a_word_is_filled_with(value: int, element_bytes: int, word: int) -> None:
    assert word_of(value, element_bytes) == word


def test_fills_of_whole_words_in_one_line_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        driver.Fill(1, 0x1000, 0xAB, 1, 4096, 1),
        driver.Fill(2, 0x2000, 7, 4, 3, 1),
        driver.Fill(3, 0x3000, 0, 1, 4097, 1),
        driver.Fill(4, 0x4002, 0, 2, 2, 1),
        driver.Fill(5, 0x5000, 0, 4, 16, 2),
        driver.Fill(6, 0x6000, 0, 4, 1 << 24, 1),
    ]
    replaced: dict[int, tuple[int, int, bool, list[int]]] = {}

    def replace(
        graph: int, node: int, kernel: int, *, grid: int, block: int, arguments: Any, early: bool
    ) -> None:
        assert (graph, kernel) == (9, 77)
        cells = (ctypes.c_void_p * 3).from_address(arguments.address)
        widths = (ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64)
        values = [width.from_address(cell).value for width, cell in zip(widths, cells, strict=True)]
        replaced[node] = (grid, block, early, values)

    monkeypatch.setattr(driver, "fills", lambda graph: found)
    monkeypatch.setattr(driver, "replace_node", replace)
    Fills(Compiler(), may_be_early=True).replace(9)
    assert replaced == {
        1: (1, 256, True, [0x1000, 0xABABABAB, 1024]),
        2: (1, 256, True, [0x2000, 7, 3]),
        6: (1024, 256, True, [0x6000, 0, 1 << 24]),
    }
