"""Where a model chooses, and what from."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from aegis_pipe.execution.choices import Choice, choice_of
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from tests.choosing_model import choosing_model


def choice_in(folder: Path, model: onnx.ModelProto | str) -> Choice | None:
    if isinstance(model, str):
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {model}')
    path = folder / "model.onnx"
    onnx.save(model, path)
    return choice_of(ModelLoader().load(path, LoadOptions()))


def test_boxes_are_chosen_from_boxes_and_scores(tmp_path: Path) -> None:
    choice = choice_in(tmp_path, choosing_model())
    assert choice is not None
    assert set(choice.sources) == {"boxes", "scores", "all"}
    assert "NonMaxSuppression" in {node.operator for node in choice.operators}
    assert choice.outputs[0] == "kept"


def test_a_mask_is_part_of_the_choice_that_it_makes(tmp_path: Path) -> None:
    choice = choice_in(
        tmp_path,
        "net (float[8] x, float[8] least) => (float[8] a, int64[1,n] places) { a = Tanh (x) "
        "above = Greater (a, least) low = Less (a, x) both = And (above, low) "
        "places = NonZero (both) }",
    )
    assert choice is not None
    assert set(choice.sources) == {"a", "x", "least"}
    assert [node.operator for node in choice.operators][:4] == ["Greater", "Less", "And", "NonZero"]
    assert "a" not in choice.outputs
    assert "places" in choice.outputs


def test_an_output_beside_the_choice_is_no_part_of_it(tmp_path: Path) -> None:
    choice = choice_in(
        tmp_path,
        "net (float[2,8] x) => (float[2,8] y, int64[2,1] kind) "
        "{ y = Softmax (x) kind = ArgMax <axis = 1> (y) }",
    )
    assert choice is not None
    assert (choice.sources, choice.outputs) == (("y",), ("kind",))


@pytest.mark.parametrize("then", ["MatMul (best, w)", "Softmax (best)", "Exp (best)"])
def test_a_model_that_goes_on_to_compute_does_not_end_in_a_choice(
    tmp_path: Path, then: str
) -> None:
    model = "net (float[4,8] x, float[3,3] w) => (float[4,3] y) <int64[1] k = {3}> "
    model += f"{{ a = Exp (x) best, at = TopK (a, k) y = {then} }}"
    assert choice_in(tmp_path, model) is None
    assert choice_in(tmp_path, model.replace(then, "Mul (best, best)")) is not None


def test_most_models_do_not_choose(tmp_path: Path) -> None:
    assert choice_in(tmp_path, "net (float[4] x) => (float[4] y) { y = Exp (x) }") is None
