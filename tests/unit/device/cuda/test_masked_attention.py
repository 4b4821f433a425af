"""Attention as exporters write it, with its masks, on the GPU's kernels, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.errors import UnsupportedOperatorError

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.execution.passes import ATTENTION_PASSES, PASSES, run_passes
from aegis_pipe.execution.passes.precision import convert
from tests.unit.device.cuda import host_device
from tests.unit.execution.passes.attention_models import EXPANDED, KEPT_WHOLE, attention_model
from tests.unit.pass_driver import feeds_of, graph_of, on_device, operators_of, run_onnxruntime

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
MODELS = EXPANDED | KEPT_WHOLE


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", MODELS)
def test_same_results_as_onnxruntime(case: str, precision: str) -> None:
    model = attention_model(MODELS[case])
    graph, _ = run_passes(graph_of(model), (*PASSES, *ATTENTION_PASSES))
    assert any("Attention" in operator for operator in operators_of(graph))
    graph = graph if precision == "fp32" else convert(graph, precision)
    feeds = feeds_of(model)
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    with host_device.HostContext(SystemClock()) as context:
        bound = on_device(graph, context)
        results = bound.run(feeds)
    for found, wanted in zip(results, run_onnxruntime(model, feeds), strict=True):
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("mask", ["lengths", "pairs"])
def test_a_cache_behind_a_mask_of_another_form_is_refused_by_name(mask: str) -> None:
    """No pass expands what keeps state, and no kernel has these masks."""
    text = (
        "(float[2,6,24] x) => (float[2,6,24] y, float[2,2,3,6,8] present)"
        f" {{ y, present = com.microsoft.Attention <num_heads = 3> (x, w, b, {mask}) }}"
    )
    graph, _ = run_passes(graph_of(attention_model(text)), (*PASSES, *ATTENTION_PASSES))
    with (
        host_device.HostContext(SystemClock()) as context,
        pytest.raises(UnsupportedOperatorError, match=r"com\.microsoft\.Attention"),
    ):
        on_device(graph, context)
