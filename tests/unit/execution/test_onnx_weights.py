"""Large weights are left out of what is parsed, and come back as they were."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.onnx_reader import read_onnx
from aegis_pipe.execution.onnx_weights import LARGE_BYTES, without_weights

RANDOM = np.random.default_rng(0)
LARGE = RANDOM.standard_normal((LARGE_BYTES // 4,)).astype(np.float32)


def _model(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    outputs = [
        helper.make_tensor_value_info(f"y{i}", t.data_type, None) for i, t in enumerate(tensors)
    ]
    nodes = [helper.make_node("Identity", [t.name], [f"y{i}"]) for i, t in enumerate(tensors)]
    graph = helper.make_graph(nodes, "g", [], outputs, list(tensors))
    return helper.make_model(graph, producer_name="tests")


def _tensors() -> list[onnx.TensorProto]:
    arrays = {
        "large": LARGE,
        "small": np.arange(3, dtype=np.int64),
        "odd": RANDOM.integers(0, 256, LARGE_BYTES + 1, np.uint8),
        "again": LARGE * 2,
        "half": LARGE.astype(np.float16).repeat(2),
        "flags": RANDOM.integers(0, 2, LARGE_BYTES).astype(bool),
    }
    as_list = helper.make_tensor("list", TensorProto.FLOAT, LARGE.shape, LARGE.tolist())
    bfloat = helper.make_tensor(
        "bfloat16",
        TensorProto.BFLOAT16,
        [LARGE_BYTES],
        LARGE.view(np.uint8).tobytes() * 2,
        raw=True,
    )
    return [*(numpy_helper.from_array(a, name) for name, a in arrays.items()), as_list, bfloat]


def test_values_are_those_of_the_parser():
    model = _model(*_tensors())
    data = model.SerializeToString()
    slim = without_weights(memoryview(data))
    assert sorted(slim.weights) == [0, 2, 3, 4, 5, 7]
    assert len(slim.data) < len(data) - sum(map(len, slim.weights.values()))
    source = read_onnx(data, None).graph
    assert list(source.initialisers) == [t.name for t in model.graph.initializer]
    for tensor in model.graph.initializer:
        ours, wanted = source.initialisers[tensor.name](), numpy_helper.to_array(tensor)
        assert ours.dtype == wanted.dtype
        assert ours.shape == wanted.shape
        assert ours.tobytes() == wanted.tobytes()
        assert ours.flags.aligned


def test_all_else_stays():
    model = _model(*_tensors())
    slim = onnx.ModelProto.FromString(
        bytes(without_weights(memoryview(model.SerializeToString())).data)
    )
    for kept, tensor in zip(slim.graph.initializer, model.graph.initializer, strict=True):
        if not kept.HasField("raw_data"):
            kept.raw_data = tensor.raw_data
        if not tensor.HasField("raw_data"):
            kept.ClearField("raw_data")
    assert slim == model


def test_small_models_are_left_alone():
    data = memoryview(_model(numpy_helper.from_array(LARGE[:8], "w")).SerializeToString())
    slim = without_weights(data)
    assert slim.data is data
    assert not slim.weights


def test_a_value_given_twice_is_left_to_the_parser():
    tensor = numpy_helper.from_array(LARGE, "w")
    twice = (
        tensor.SerializeToString()
        + onnx.TensorProto(raw_data=(LARGE * 2).tobytes()).SerializeToString()
    )
    graph = _model(tensor).graph
    rest = onnx.GraphProto.FromString(graph.SerializeToString())
    del rest.initializer[:]
    inner = rest.SerializeToString() + b"\x2a" + _length(len(twice)) + twice
    data = onnx.ModelProto(ir_version=8).SerializeToString() + b"\x3a" + _length(len(inner)) + inner
    assert not without_weights(memoryview(data)).weights
    assert np.array_equal(read_onnx(data, None).graph.initialisers["w"](), LARGE * 2)


def _length(value: int) -> bytes:
    groups = []
    while value:
        groups.append(value & 127 | 128)
        value >>= 7
    groups[-1] &= 127
    return bytes(groups)


@pytest.mark.parametrize("cut", [1, 5, 100, LARGE_BYTES // 2, LARGE_BYTES + 100])
def test_cut_short_is_told_as_ever(cut):
    data = _model(numpy_helper.from_array(np.tile(LARGE, 3), "w")).SerializeToString()
    with pytest.raises(InvalidModelError, match="is cut short"):
        read_onnx(data[:-cut], None)


def test_damage_anywhere_is_an_error_or_a_model():
    data = _model(*_tensors()).SerializeToString()
    places = [*range(0, 200), *RANDOM.integers(0, len(data), 400).tolist()]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= int(RANDOM.integers(1, 256))
        try:
            onnx.ModelProto.FromString(bytes(damaged))
        except Exception:
            with pytest.raises(InvalidModelError):
                read_onnx(bytes(damaged), None)
            continue
        slim = without_weights(memoryview(bytes(damaged)))
        assert onnx.ModelProto.FromString(bytes(slim.data)).graph.node == (
            onnx.ModelProto.FromString(bytes(damaged)).graph.node
        )
