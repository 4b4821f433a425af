"""A small decoder with a cache of keys and values, kept on the device from token to token.

Every way in which exporters write a cache of fixed size: the results are those of handing the cache
in and out by hand, bit for bit, and the cache is copied only where it has to be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe import open_pipeline
from aegis_pipe.app import plan_deployment
from aegis_pipe.cli import main
from aegis_pipe.errors import AegisError
from aegis_pipe.manifest.loader import load_manifest
from tests.unit.pass_driver import model_of

LAYERS, HEADS, SIZE, ROOM, VOCABULARY = 2, 2, 8, 16, 31
WIDTH = HEADS * SIZE
CACHE = [1, HEADS, ROOM, SIZE]


class Decoder:
    """Writes the model down, node by node."""

    def __init__(self, update: str, *, looks_back: bool = False) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(5)
        self._update = update
        self._looks_back = looks_back
        self._count = 0

    def model(self) -> onnx.ModelProto:
        hidden = self._node("Gather", self._weight(VOCABULARY, WIDTH), "token")  # [1, 1, width]
        place = self._node("Reshape", "position", self._constant(np.array([1, 1, 1, 1])))
        if self._update == "Concat":  # the newest is always last
            mask = self._constant(np.zeros((1, 1, 1, ROOM), np.float32))
        else:
            steps = self._constant(np.arange(ROOM).reshape(1, 1, 1, ROOM))
            seen = self._node("LessOrEqual", steps, place)
            zero, low = (self._constant(np.float32(value)) for value in (0, -1e9))
            mask = self._node("Where", seen, zero, low)
        caches = []
        for layer in range(LAYERS):
            flat = [
                self._node("MatMul", hidden, self._weight(WIDTH, WIDTH))
                for _ in ("query", "key", "value")
            ]
            pairs = [
                (f"past_key_values.{layer}.{what}", f"present.{layer}.{what}")
                for what in ("key", "value")
            ]
            caches += pairs
            if self._update == "GroupQueryAttention":
                mixed = self._group_query(flat, pairs)
            else:
                mixed = self._attention(flat, pairs, place, mask)
            hidden = self._node("Add", hidden, self._node("Tanh", mixed))
        if self._looks_back:  # at the cache as it was, when it has been updated already
            old = self._node("ReduceSum", caches[0][0], keepdims=0)
            hidden = self._node("Add", hidden, old)
        self._node("MatMul", hidden, self._weight(WIDTH, VOCABULARY), result="logits")
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [
                value("token", TensorProto.INT64, [1, 1]),
                value("position", TensorProto.INT64, [1]),
                *(value(past, TensorProto.FLOAT, CACHE) for past, _ in caches),
            ],
            [
                value("logits", TensorProto.FLOAT, [1, 1, VOCABULARY]),
                *(value(present, TensorProto.FLOAT, CACHE) for _, present in caches),
            ],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        opset = 24 if self._update == "TensorScatter" else 18
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )

    def _attention(
        self, flat: list[str], pairs: list[tuple[str, str]], place: str, mask: str
    ) -> str:
        apart = self._constant(np.array([1, 1, HEADS, SIZE]))
        query, key, value = (  # [1, heads, 1, size]
            self._node("Transpose", self._node("Reshape", each, apart), perm=[0, 2, 1, 3])
            for each in flat
        )
        (past_key, present_key), (past_value, present_value) = pairs
        key = self._updated(past_key, key, place, present_key)
        value = self._updated(past_value, value, place, present_value)
        scores = self._node("MatMul", query, self._node("Transpose", key, perm=[0, 1, 3, 2]))
        chances = self._node("Softmax", self._node("Add", scores, mask), axis=-1)
        mixed = self._node("Transpose", self._node("MatMul", chances, value), perm=[0, 2, 1, 3])
        return self._node("Reshape", mixed, self._constant(np.array([1, 1, WIDTH])))

    def _group_query(self, flat: list[str], pairs: list[tuple[str, str]]) -> str:
        lengths = self._node("Cast", "position", to=TensorProto.INT32)
        total = self._constant(np.array(ROOM, np.int32))
        (past_key, present_key), (past_value, present_value) = pairs
        self._count += 1
        result = f"t{self._count}"
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*flat, past_key, past_value, lengths, total],
                [result, present_key, present_value],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=HEADS,
            )
        )
        return result

    def _updated(self, past: str, new: str, place: str, present: str) -> str:
        if self._update == "ScatterElements":
            at = self._node("Expand", place, self._constant(np.array([1, HEADS, 1, SIZE])))
            return self._node("ScatterElements", past, at, new, axis=2, result=present)
        if self._update == "ScatterND":
            heads = np.stack([np.zeros(HEADS, np.int64), np.arange(HEADS)], axis=-1)
            which = self._constant(heads.reshape(1, HEADS, 1, 2))
            where = self._node("Expand", place, self._constant(np.array([1, HEADS, 1, 1])))
            at = self._node("Concat", which, where, axis=-1)
            return self._node("ScatterND", past, at, new, result=present)
        if self._update == "TensorScatter":
            return self._node("TensorScatter", past, new, "position", axis=2, result=present)
        assert self._update == "Concat"
        ends = [self._constant(np.array([x])) for x in (1, ROOM, 2)]
        rest = self._node("Slice", past, *ends)
        return self._node("Concat", rest, new, axis=2, result=present)

    def _weight(self, *shape: int) -> str:
        return self._constant(self._rng.standard_normal(shape).astype(np.float32) / 4)

    def _constant(self, array: np.ndarray | np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = np.asarray(array)
        return name

    def _node(self, operator: str, *inputs: str, result: str = "", **attributes: object) -> str:
        self._count += 1
        result = result or f"t{self._count}"
        self._nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        return result


UPDATES = ("ScatterElements", "ScatterND", "TensorScatter", "Concat", "GroupQueryAttention")

STATES = {
    f"past_key_values.{layer}.{what}": f"present.{layer}.{what}"
    for layer in range(LAYERS)
    for what in ("key", "value")
}

KEYS = "past_key_values.0.key"

MANIFEST = """
manifest_version = 1
name = "decoder"
[device]
memory_debug = "{debug}"
[streams]
count = 2
max_block = "10 us"
[[models]]
name = "by-hand"
path = "decoder.onnx"
[[models]]
name = "kept"
path = "decoder.onnx"
state = {{ {state} }}
[[models]]
name = "another"
path = "another.onnx"
"""


def write(folder: Path, update: str, *, looks_back: bool = False, debug: str = "off") -> Path:
    onnx.save(Decoder(update, looks_back=looks_back).model(), folder / "decoder.onnx")
    text = "(float[64,64] x) => (float[64,64] y) { s = Mul(x, x) y = Add(s, x) }"
    onnx.save(model_of(text), folder / "another.onnx")
    state = ", ".join(f'"{past}" = "{present}"' for past, present in STATES.items())
    path = folder / "decoder.toml"
    path.write_text(MANIFEST.format(debug=debug, state=state))
    return path


def feed(position: int) -> dict[str, np.ndarray]:
    return {
        "token": np.array([[(7 * position + 3) % VOCABULARY]]),
        "position": np.array([position]),
    }


def check_tokens(path: Path, positions: Sequence[int]) -> None:
    """Run both models side by side, and a third one between them."""
    noise = {"x": np.full((64, 64), np.pi, np.float32)}
    with open_pipeline(path) as runtime:
        caches = {past: np.zeros(CACHE, np.float32) for past in STATES}
        for position in positions:
            expected = runtime.infer("by-hand", {**feed(position), **caches})
            caches = {past: expected[present] for past, present in STATES.items()}
            others = [runtime.submit("another", noise) for _ in range(4)]
            found = runtime.infer("kept", feed(position))
            assert list(found) == ["logits"]
            np.testing.assert_array_equal(found["logits"], expected["logits"])
            for other in others:
                other.result(timeout=60)
        runtime.reset_state("kept")
        first = runtime.infer("kept", feed(positions[0]))
        fresh = {past: np.zeros(CACHE, np.float32) for past in STATES}
        np.testing.assert_array_equal(
            first["logits"], runtime.infer("by-hand", {**feed(positions[0]), **fresh})["logits"]
        )
        assert runtime.statistics().allocations_after_start == 0


@pytest.mark.parametrize("debug", ["off", "canary"])
@pytest.mark.parametrize("update", UPDATES)
def test_a_kept_cache_is_the_one_handed_in_by_hand(tmp_path: Path, update: str, debug: str) -> None:
    check_tokens(write(tmp_path, update, debug=debug), range(ROOM))


@pytest.mark.parametrize("update", UPDATES)
def test_nothing_is_copied_where_the_plan_proves_it(tmp_path: Path, update: str) -> None:
    planned = plan_deployment(load_manifest(write(tmp_path, update)))
    kept = planned.models[1]
    assert list(kept.updated_in_place) == list(STATES)
    assert not [step for step in kept.steps if step.is_keep and step.is_launched]
    assert kept.violations(planned.device.alignment_bytes) == []
    # The arena has no room for any cache.
    alive = {each.tensor_id for each in kept.analysis.lifetimes}
    assert not alive & (set(STATES) | set(STATES.values()))


def test_a_cache_that_is_read_later_is_copied(tmp_path: Path) -> None:
    path = write(tmp_path, "ScatterND", looks_back=True)
    kept = plan_deployment(load_manifest(path)).models[1]
    assert list(kept.updated_in_place) == list(STATES)[1:]
    assert len([step for step in kept.steps if step.is_keep and step.is_launched]) == 1
    check_tokens(path, range(ROOM))


def test_the_checker_notices_a_cache_that_is_updated_too_early(tmp_path: Path) -> None:
    honest = plan_deployment(load_manifest(write(tmp_path, "ScatterND"))).models[1]
    last = max(index for index, step in enumerate(honest.analysis.steps) if KEYS in step.reads)
    steps = list(honest.analysis.steps)
    # As if the old keys were read once more, after they were written over.
    late = steps[last + 1]
    steps[last + 1] = replace(late, reads=(*late.reads, KEYS))
    tampered = replace(honest, analysis=replace(honest.analysis, steps=tuple(steps)))
    found = tampered.violations(64)
    assert any("present.0.key" in str(each) for each in found)


def test_the_plan_says_which_states_are_updated_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path, "ScatterND", looks_back=True))
    assert main(["plan", path, "--check"]) == 0
    assert "kept: 4 states of 4 KiB, 3 updated in place" in capsys.readouterr().out
    assert main(["plan", path, "--json"]) == 0
    states = json.loads(capsys.readouterr().out)["models"][1]["states"]
    assert [each["in_place"] for each in states] == [False, True, True, True]


def test_a_request_that_fails_half_way_is_told_of_until_the_state_is_reset(tmp_path: Path) -> None:
    with open_pipeline(write(tmp_path, "ScatterND")) as runtime:
        first = runtime.infer("kept", feed(0))["logits"]
        with pytest.raises(AegisError, match="index"):
            runtime.infer("kept", {**feed(1), "position": np.array([ROOM])})
        for _ in range(2):
            with pytest.raises(AegisError, match="half-written") as caught:
                runtime.infer("kept", feed(1))
            assert "reset_state" in str(caught.value)
        runtime.reset_state("kept")
        np.testing.assert_array_equal(runtime.infer("kept", feed(0))["logits"], first)


def test_a_request_that_is_refused_before_it_writes_leaves_the_state(tmp_path: Path) -> None:
    with open_pipeline(write(tmp_path, "ScatterND")) as runtime:
        runtime.infer("kept", feed(0))
        with pytest.raises(AegisError):
            runtime.infer("kept", {**feed(1), "position": np.zeros(2, np.int64)})
        runtime.infer("kept", feed(1))
