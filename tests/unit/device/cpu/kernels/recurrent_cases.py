"""Recurrent layers on which the compiled kernels are tested."""

from __future__ import annotations

import numpy as np

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _layer(
    operator: str,
    time: int,
    batch: int,
    size: int,
    hidden: int,
    *,
    direction: str = "forward",
    layout: int = 0,
    bias: bool = True,
    state: bool = True,
    lengths: bool = False,
    peepholes: bool = False,
    **attributes: object,
) -> Case:
    gates, count = _GATES[operator] * hidden, 2 if direction == "bidirectional" else 1
    data = random(batch, time, size) if layout else random(time, batch, size)
    initial = random(batch, count, hidden) if layout else random(count, batch, hidden)
    scale = np.float32(hidden**-0.5)
    values: list[np.ndarray | None] = [
        data,
        random(count, gates, size) * np.float32(size**-0.5),
        random(count, gates, hidden) * scale,
        random(count, 2 * gates) if bias else None,
        np.arange(batch, dtype=np.int32) % time + 1 if lengths else None,
        initial if state else None,
    ]
    if operator == "LSTM":
        values += [
            initial[::-1].copy() if state else None,
            random(count, 3 * hidden) if peepholes else None,
        ]
    names = [f"i{i}" if value is not None else "" for i, value in enumerate(values)]
    node = make_node(
        operator,
        names,
        3 if operator == "LSTM" else 2,
        hidden_size=hidden,
        direction=direction,
        layout=layout,
        **attributes,
    )
    return Case(f"native.{operator.lower()}", node, values, (1, 2), like_onnxruntime=not layout)


def recurrent_layers() -> dict[str, Case]:
    """Every size of product, every operand left out once, every activation."""
    cases = {}
    for operator in _GATES:
        for batch, hidden in ((1, 7), (2, 20), (3, 16), (9, 70)):
            cases[f"{operator} {batch} {hidden}"] = _layer(operator, 4, batch, 9, hidden)
        cases[f"{operator} long"] = _layer(operator, 70, 1, 600, 24)
        cases[f"{operator} reverse"] = _layer(
            operator, 5, 3, 6, 18, direction="reverse", lengths=True
        )
        cases[f"{operator} both"] = _layer(
            operator, 5, 3, 6, 18, direction="bidirectional", bias=False, state=False
        )
    cases["GRU linear"] = _layer("GRU", 3, 2, 5, 33, linear_before_reset=1)
    cases["GRU linear without bias"] = _layer("GRU", 3, 1, 5, 8, linear_before_reset=1, bias=False)
    cases["GRU linear both"] = _layer(
        "GRU", 4, 5, 5, 40, linear_before_reset=1, direction="bidirectional", lengths=True
    )
    cases["LSTM peepholes"] = _layer("LSTM", 4, 2, 5, 21, peepholes=True)
    cases["LSTM clipped"] = _layer("LSTM", 4, 2, 5, 16, clip=0.7)
    cases["LSTM coupled"] = _layer("LSTM", 4, 2, 5, 16, input_forget=1)
    cases["LSTM of others"] = _layer("LSTM", 4, 2, 5, 16, activations=["Relu", "Softsign", "Tanh"])
    for activation, parameters in (
        ("Relu", {}),
        ("LeakyRelu", {"activation_alpha": [0.1]}),
        ("HardSigmoid", {"activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("Affine", {"activation_alpha": [0.5], "activation_beta": [0.25]}),
        ("ScaledTanh", {"activation_alpha": [1.5], "activation_beta": [0.5]}),
        ("ThresholdedRelu", {"activation_alpha": [0.3]}),
        ("Softsign", {}),
        ("Sigmoid", {}),
    ):
        layer = _layer("RNN", 3, 2, 5, 8, activations=[activation], **parameters)
        cases[f"RNN of {activation}"] = layer
    return cases


def batch_first_layers() -> dict[str, Case]:
    """Layout 1, which ONNX Runtime has not."""
    return {
        f"{operator} batch first": _layer(
            operator, 5, 3, 6, 18, direction="bidirectional", layout=1, lengths=True
        )
        for operator in _GATES
    }


def dynamic_layers() -> dict[str, Case]:
    """Weights of 8 bits with scales and zero points of each column, or of each direction."""
    cases = {}
    for kind, zero_point in ((np.int8, 0), (np.int8, 5), (np.uint8, 128), (np.uint8, 117)):
        for directions, columns, lengths, *sizes in (
            (1, True, False, 3, 2, 10, 16),
            (2, False, False, 4, 1, 70, 20),
            (2, True, False, 5, 9, 9, 70),
            (2, True, True, 6, 5, 150, 40),
            (1, False, False, 40, 3, 130, 33),
        ):
            case = _dynamic(kind, zero_point, directions, columns, lengths, *sizes)
            cases[f"dynamic {np.dtype(kind)} {zero_point} {directions} {sizes[1]}"] = case
    return cases


def _dynamic(
    kind: type[np.int8 | np.uint8],
    zero_point: int,
    directions: int,
    columns: bool,
    lengths: bool,
    time: int,
    batch: int,
    size: int,
    hidden: int,
) -> Case:
    """Inputs on ranges of their own; `columns`: scales and zero points one a column."""
    direction = "bidirectional" if directions > 1 else "forward"
    real = _layer("LSTM", time, batch, size, hidden, direction=direction, lengths=lengths)
    if lengths and real.values[4] is not None:
        # What comes behind the longest sequence must not widen the range of X.
        real.values[4] = np.minimum(real.values[4], time - 1)
        assert real.values[0] is not None
        real.values[0][-1] *= 9
    random_bytes = np.random.default_rng(3)
    limits = np.iinfo(kind)
    levels: list[np.ndarray] = [
        random_bytes.integers(
            limits.min, limits.max, (directions, depth, 4 * hidden), endpoint=True
        ).astype(kind)
        for depth in (size, hidden)
    ]
    shape = (directions, 4 * hidden) if columns else (directions,)
    scales = [
        np.float32(depth**-0.5 / 128) / (1 + np.abs(random(*shape))) for depth in (size, hidden)
    ]
    zeros: np.ndarray = np.full(shape, zero_point, kind)
    parameters = [scales[0], zeros, scales[1], zeros]
    values = [real.values[0], *levels, *real.values[3:8], *parameters]
    names = [f"i{i}" if value is not None else "" for i, value in enumerate(values)]
    node = make_node(
        "DynamicQuantizeLSTM",
        names,
        3,
        domain="com.microsoft",
        hidden_size=hidden,
        direction=direction,
    )
    constants = (1, 2, 8, 9, 10, 11)
    # ONNX Runtime takes a middle of the range as the only zero point. Functions may differ in their
    # last digits, and an activation that falls to another level for it moves all gates a little.
    return Case(
        "native.lstm_of_bytes",
        node,
        values,
        constants,
        like_onnxruntime=zero_point in (0, 128),
        tolerance=1e-3,
    )


RECURRENT: dict[str, Case] = {
    **recurrent_layers(),
    **batch_first_layers(),
    **dynamic_layers(),
}
