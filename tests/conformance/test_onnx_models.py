"""The nine real architectures that ONNX ships with expected outputs."""

from __future__ import annotations

import pytest
from onnx_cases import LIGHT_MODELS, Outcome, run_light_model

MODELS = sorted(path.stem for path in LIGHT_MODELS.glob("*.onnx"))


def test_all_nine_are_there() -> None:
    assert len(MODELS) == 9


@pytest.mark.parametrize("name", MODELS)
def test_light_model_gives_the_shipped_output(name: str) -> None:
    assert run_light_model(name) == Outcome()
