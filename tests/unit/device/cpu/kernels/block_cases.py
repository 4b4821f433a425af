"""Cases for products with weights quantised in blocks."""

from __future__ import annotations

import itertools

import numpy as np

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node


def _product(
    rows: int,
    depth: int,
    columns: int,
    size: int,
    bits: int,
    zeros: str,
    bias: bool,
    accuracy: int,
) -> Case:
    generator = np.random.default_rng(depth + columns)
    blocks = -(-depth // size)
    values: list[np.ndarray | None] = [
        random(rows, depth),
        generator.integers(0, 256, (columns, blocks, size * bits // 8), np.uint8),
        generator.random(columns * blocks, np.float32) / 50,
    ]
    if zeros == "bytes":
        values.append(generator.integers(0, 256, columns * -(-blocks * bits // 8), np.uint8))
    elif zeros == "floats":
        values.append(generator.random(columns * blocks, np.float32) * 15)
    else:
        values.append(None)
    values += [None, random(columns)] if bias else []
    names = ["" if value is None else f"i{i}" for i, value in enumerate(values)]
    node = make_node(
        "MatMulNBits",
        names,
        domain="com.microsoft",
        K=depth,
        N=columns,
        bits=bits,
        block_size=size,
        accuracy_level=accuracy,
    )
    constants = tuple(i for i in range(1, len(values)) if values[i] is not None)
    kernel = "native.gemm.blocks.bytes" if accuracy else "native.gemm.blocks"
    # ONNX Runtime rounds larger blocks than these in another way.
    is_like = not accuracy or size <= 256
    return Case(kernel, node, values, constants, like_onnxruntime=is_like, tolerance=2e-5)


def cases() -> dict[str, Case]:
    found = {}
    for accuracy, bits, zeros in itertools.product((0, 4), (4, 8), ("none", "bytes", "floats")):
        if zeros == "floats" and (bits == 8 or accuracy):
            continue
        for rows, depth, columns, size in (
            (1, 128, 80, 32),
            (2, 64, 67, 16),
            (3, 96, 5, 32),
            (4, 300, 130, 64),
            (7, 77, 40, 32),
            (13, 77, 70, 16),
            (40, 1100, 33, 128),
            (13, 1200, 17, 1024),
        ):
            bias = rows % 2 == 1
            of = "bytes" if accuracy else "floats"
            name = f"{of} {bits} bits {zeros} {rows}x{depth}x{columns} by {size}"
            found[name] = _product(rows, depth, columns, size, bits, zeros, bias, accuracy)
    return found


BLOCKS: dict[str, Case] = {f"blocks {name}": case for name, case in cases().items()}
