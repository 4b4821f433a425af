"""Requests that run together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import aegis_pipe
from aegis_pipe.events import Event, SegmentFinished
from aegis_pipe.manifest.model import BatchingSection
from tests.unit.app.small_models import WAIT_S, WEIGHT, Latch, Save, Write, row


def batching(manifest: aegis_pipe.Manifest, max_batch: int, **changes: Any) -> aegis_pipe.Manifest:
    section = replace(
        manifest.models[0], shapes={"x": (1, 64)}, batching=BatchingSection(max_batch), **changes
    )
    return replace(manifest, models=(section, *manifest.models[1:]))


@pytest.fixture
def rows(save: Save) -> str:
    """`x` float32[N, 64] -> MatMul -> Softmax -> `y` float32[N, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Softmax", ["product"], ["y"], axis=-1),
    ]
    row: Any = (TensorProto.FLOAT, ["N", 64])
    return save("rows", nodes, {"x": row}, {"y": row}, weight=WEIGHT)


def test_requests_that_wait_run_together_with_the_results_they_have_alone(
    write: Write, rows: str, product: str, latch: Latch
) -> None:
    manifest = batching(aegis_pipe.load_manifest(write(m=rows, other=product)), 6)
    events: list[Event] = []
    inputs = [row(seed) for seed in range(9)]
    with aegis_pipe.open_pipeline(manifest, listeners=[events.append, latch]) as runtime:
        first = runtime.submit("other", {"x": inputs[0]})
        assert latch.reached.wait(WAIT_S)
        futures = [runtime.submit("m", {"x": x}) for x in inputs]
        futures[2].cancel()
        latch.release()
        first.result(WAIT_S)
        for number, (x, future) in enumerate(zip(inputs, futures, strict=True)):
            if number == 2:
                with pytest.raises(aegis_pipe.RequestCancelledError):
                    future.result(WAIT_S)
                continue
            expected = x @ WEIGHT
            expected = np.exp(expected - expected.max())
            np.testing.assert_allclose(
                future.result(WAIT_S)["y"], expected / expected.sum(), rtol=1e-4, atol=1e-7
            )
        assert runtime.statistics().allocations_after_start == 0
        assert set(runtime.models) == {"m", "other"}
        with pytest.raises(aegis_pipe.InvalidInputError, match="no model `m@4`"):
            runtime.submit("m@4", {"x": inputs[0]})
    ran = [each.model for each in events if isinstance(each, SegmentFinished)]
    # Eight are wanted: six in a variant for six, two in one for two.
    assert ran == ["other", *["m@6"] * 6, *["m@2"] * 2]


def test_variants_share_the_weights_and_the_plan_has_them(write: Write, rows: str) -> None:
    manifest = aegis_pipe.load_manifest(write(m=rows))
    alone = replace(manifest, models=(replace(manifest.models[0], shapes={"x": (1, 64)}),))
    plan, alone_plan = (
        aegis_pipe.app.plan_deployment(each) for each in (batching(manifest, 8), alone)
    )
    assert [each.name for each in plan.variants] == ["m@2", "m@4", "m@8"]
    assert plan.memory.weights_bytes == alone_plan.memory.weights_bytes
    assert plan.memory.arena_bytes > alone_plan.memory.arena_bytes


def test_a_model_whose_rows_influence_each_other_is_refused(write: Write, save: Save) -> None:
    row: Any = (TensorProto.FLOAT, ["N", 64])
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    manifest = aegis_pipe.load_manifest(write(m=save("mixing", nodes, {"x": row}, {"y": row})))
    with pytest.raises(aegis_pipe.PermanentError, match=r"row 0 of output `y` is another one") as e:
        aegis_pipe.open_pipeline(batching(manifest, 2))
    assert "model `m`, `batching`" in str(e.value)


def test_a_model_without_an_open_batch_dimension_is_refused(write: Write, product: str) -> None:
    manifest = batching(aegis_pipe.load_manifest(write(m=product)), 2)
    with pytest.raises(aegis_pipe.PermanentError, match="`batching`"):
        aegis_pipe.open_pipeline(manifest)
