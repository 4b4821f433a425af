"""A plan over budget says what a lighter model would save, by planning it."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from aegis_pipe.app import plan_deployment
from aegis_pipe.clock import SystemClock
from aegis_pipe.deployment_builder import model_orders
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.errors import BudgetExceededError
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.deployment import ModelOrder, compile_models, plan_models
from aegis_pipe.execution.lighter import lighter_orders, lighter_ways
from aegis_pipe.execution.model_loader import LoadOptions
from aegis_pipe.manifest.loader import load_manifest
from aegis_pipe.scheduler_builder import compile_variants
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
                more_savings=lambda plan, measure: lighter_ways(
                    orders, loaded, plan, measure, context, phases
                ),
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
    assert "fullest at step 1 (`Sub_3`) with `x`" in message


BATCHED = """
manifest_version = 1
name = "batched"
[device]
{budget}
[[models]]
name = "net"
path = "net.onnx"
shapes = {{ x = [1, 4096] }}
batching = {{ max_batch = {rows} }}
"""


def test_a_smaller_max_batch_saves_what_it_is_said_to(tmp_path):
    onnx.save(MODEL, tmp_path / "net.onnx")
    path = tmp_path / "batched.toml"

    def total_bytes(rows, budget=""):
        path.write_text(BATCHED.format(rows=rows, budget=budget))
        return plan_deployment(load_manifest(path)).memory.total_bytes

    whole, half, quarter = (total_bytes(rows) for rows in (8, 4, 2))
    for budget_bytes, rows, smaller in [(half, 4, half), (half - 1, 2, quarter)]:
        with pytest.raises(BudgetExceededError) as caught:
            total_bytes(8, f'memory_budget = "{budget_bytes} B"')
        saved = format_size(whole - smaller)
        hint = f"lower `batching.max_batch` to {rows} for model `net`, which saves {saved}"
        assert hint in str(caught.value)


LOOKUP = model_of(
    "(int64[N] x) => (float[N,64] y) { y = Gather(w, x) }", {"w": np.ones((999, 64), np.float32)}
)


def test_what_is_lighter_is_lighter_in_every_size(tmp_path):
    onnx.save(LOOKUP, tmp_path / "net.onnx")
    path = tmp_path / "batched.toml"
    path.write_text(BATCHED.format(rows=4, budget="").replace(", 4096", ""))
    manifest = load_manifest(path)
    phases = PhaseRecorder(EventHub(), SystemClock())
    with HalfCapable(SystemClock()) as context:
        orders = model_orders(manifest)
        loaded = compile_models(orders, context, phases)
        loaded += compile_variants(manifest, orders, loaded, context, phases)
        budgets = [None] * len(loaded)
        plan = plan_models(loaded, budgets, context, stream_count=1, budget_bytes=None)
        ways = lighter_ways(orders, loaded, plan, lambda plan: plan.total_bytes, context, phases)
    (saved,) = [way.size_bytes for way in ways if "fp16" in way.name]
    # The table is one for all sizes: it is lighter only if all of them take the lighter one.
    assert saved > plan.weights_bytes * 0.4
