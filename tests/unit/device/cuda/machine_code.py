"""What the compiler made of a kernel's source."""

from __future__ import annotations

import struct

from aegis_pipe.device.cuda import driver

_CONTRACTED = (0x23, 0x2B)
"""The lowest nine bits of FFMA and DFMA; an instruction has 16 bytes."""


def contractions(source: str) -> int:
    """Count the products in the code of a kernel to which something is added in one rounding."""
    image = driver.compile_cubin(source, "sm_90")
    (headers,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names = struct.unpack_from("<HHH", image, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", image, headers + size * i) for i in range(count)]
    for name, _, _, _, start, length in sections:
        if image[sections[names][4] + name :].startswith(b".text.k\0"):
            words = struct.unpack_from(f"<{length // 8}Q", image, start)
            return sum(word & 0x1FF in _CONTRACTED for word in words[::2])
    raise AssertionError("there is no code")
