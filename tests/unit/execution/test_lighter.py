"""A plan over budget says what a lighter model would save, by planning it."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.errors import BudgetExceededError
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.deployment import ModelOrder, compile_models, plan_models
from aegis_pipe.execution.lighter import lighter_orders, lighter_ways
from aegis_pipe.execution.model_loader import LoadOptions
from aegis_pipe.units import format_size
from tests.unit.pass_driver import model_of

MODEL = model_of(
    "(float[N,4096] x) => (float[N,4096] y) { h = Sub(x, w) s = Sin(x) r = Relu(h) y = Sub(r, s) }",
    {"w": np.arange(4096, dtype=np.float32)},
)


class HalfCapable(CpuContext):
    """The CPU runs half precision through float32; here it says that this is worth it."""

    @property
    def capabilities(self):
        return replace(super().capabilities, half_precision=True)


def refusal(folder, rows):
    onnx.save(MODEL, folder / "net.onnx")
    orders = [ModelOrder("net", folder / "net.onnx", LoadOptions({"x": (rows, 4096)}, name="net"))]
    phases = PhaseRecorder(EventHub(), SystemClock())
    with CpuContext(SystemClock()) as context:
        loaded = compile_models(orders, context, phases)

        def plan(budget_bytes):
            return plan_models(
                loaded,
                [None],
                context,
                stream_count=2,
                budget_bytes=budget_bytes,
                more_savings=lambda plan: lighter_ways(orders, loaded, plan, context, phases),
            )

        total_bytes = plan(None).total_bytes
        with pytest.raises(BudgetExceededError) as caught:
            plan(total_bytes - 1)
        half = replace(orders[0], options=LoadOptions({"x": (rows // 2, 4096)}, name="net"))
        lighter = compile_models([half], context, phases) if rows > 1 else loaded
        saved = (
            total_bytes
            - plan_models(lighter, [None], context, stream_count=2, budget_bytes=None).total_bytes
        )
    return str(caught.value), saved


def test_half_the_batch_is_offered_with_what_it_saves(tmp_path):
    message, saved_bytes = refusal(tmp_path, 8)
    assert saved_bytes > 0
    saved = format_size(saved_bytes)
    assert f"set the batch of model `net` to 4 by `shapes`, which saves {saved}" in message
    assert "fp16" not in message


@pytest.mark.parametrize("context_type", [CpuContext, HalfCapable])
def test_half_precision_is_tried_where_the_device_is_made_for_it(tmp_path, context_type):
    onnx.save(MODEL, tmp_path / "net.onnx")
    order = ModelOrder("net", tmp_path / "net.onnx", LoadOptions({"x": (1, 4096)}, name="net"))
    with context_type(SystemClock()) as context:
        (loaded,) = compile_models([order], context, PhaseRecorder(EventHub(), SystemClock()))
        tried = [lighter.precision for _, lighter in lighter_orders(order, loaded, context)]
    assert tried == (["fp16"] if context_type is HalfCapable else [])


def test_the_step_and_the_tensors_are_named(tmp_path):
    message, _ = refusal(tmp_path, 8)
    assert "fullest at step 0 (" in message
