"""The compiled kernels against ONNX Runtime, NumPy's kernels, themselves and the edge of memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import pytest

from aegis_pipe.device.cpu.kernels import byte_units, native
from tests.unit.device.cpu.kernels.attention_cases import masked_rows
from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.device.cpu.kernels.compiled_cases import CASES
from tests.unit.kernel_driver import drive, make_node, operator_node, run_onnxruntime

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"compiled kernels {native.STATUS}")

ROOT = Path(__file__).parents[5]
NATIVE_HIDDEN_BYTES_MAX = 1024
"""A call through ctypes makes a few Python numbers."""


def _outputs(case: Case) -> tuple[np.ndarray, ...]:
    driven = drive(operator_node(case.node, case.opset), case.values, case.constants, compiled=True)
    assert driven is not None, "no compiled kernel takes this"
    assert driven.kernel == case.kernel
    assert driven.hidden_bytes <= NATIVE_HIDDEN_BYTES_MAX
    return tuple(output for output in driven.outputs if output is not None)


def _assert_close(case: Case, actual: np.ndarray, expected: np.ndarray) -> None:
    """Errors are measured against the largest result: single ones cancel."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    scale = max(1.0, float(np.abs(expected.astype(np.float64)).max()))
    actual, expected = actual.astype(np.float64) / scale, expected.astype(np.float64) / scale
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=case.tolerance)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].like_onnxruntime])
def test_same_as_onnxruntime(name: str) -> None:
    case = CASES[name]
    # With accuracy_level ONNX Runtime rounds only where it knows the weights.
    constants = case.constants if "accuracy_level" in str(case.node) else ()
    expected = run_onnxruntime(case.node, case.values, case.opset, constants)
    for ours, theirs in zip(_outputs(case), expected, strict=True):
        _assert_close(case, ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_same_as_numpy_kernels(name: str) -> None:
    case = CASES[name]
    plain = drive(operator_node(case.node, case.opset), case.values, case.constants)
    assert plain is not None, "no NumPy kernel takes this"
    expected = [output for output in plain.outputs if output is not None]
    for ours, theirs in zip(_outputs(case), expected, strict=True):
        _assert_close(case, ours, theirs)


def _libraries_that_fuse() -> list[native.NativeLibrary]:
    """Libraries of this machine whose multiply-add rounds once: their bits have to agree."""
    assert native.LIBRARY is not None
    levels = range(3, native.LIBRARY.isa_level + 1)
    return [native.NativeLibrary(native.FOLDER / f"x86_64_v{level}.so") for level in levels]


@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_the_instruction_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = set()
    for library in _libraries_that_fuse():
        monkeypatch.setattr(native, "LIBRARY", library)
        results.add(tuple(output.tobytes() for output in _outputs(CASES[name])))
    assert len(results) <= 1


@pytest.mark.parametrize("name", CASES)
def test_baseline_build(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without a fused multiply-add round twice."""
    ours = _outputs(CASES[name])
    baseline = min(native.FOLDER.glob("*.so"))
    monkeypatch.setattr(native, "LIBRARY", native.NativeLibrary(baseline))
    for here, there in zip(ours, _outputs(CASES[name]), strict=True):
        _assert_close(CASES[name], there, here)


@pytest.mark.parametrize("name", [name for name in CASES if "bytes" in CASES[name].kernel])
def test_integers_do_not_depend_on_the_unit(name: str) -> None:
    """Whatever instructions multiply the bytes, the bits are the same."""
    assert native.LIBRARY is not None
    results = set()
    try:
        for highest in range(len(byte_units.UNITS)):
            native.LIBRARY.choose_byte_unit(highest)
            results.add(tuple(output.tobytes() for output in _outputs(CASES[name])))
    finally:
        native.LIBRARY.choose_byte_unit(native.HIGHEST_BYTE_UNIT)
    assert len(results) == 1


def test_operands_may_touch_forbidden_memory() -> None:
    """Each operand ends, then begins, at a page that must not be read; a crash fails the test."""
    command = [sys.executable, "-m", "tests.unit.device.cpu.kernels.page_guard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(CASES))]


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the compiler is not installed")
def test_no_undefined_behaviour(tmp_path: Path) -> None:
    """A build that traps on overflows and on arrays' bounds runs every case.

    Not optimised: the checks are the same, and it compiles in a twentieth of the time.
    """
    spec = spec_from_file_location("hatch_build", ROOT / "tools" / "hatch_build.py")
    assert spec is not None
    recipe = module_from_spec(spec)
    spec.loader.exec_module(recipe)
    library = tmp_path / "trapping.so"
    processor = next(iter(recipe.TARGETS[platform.machine()].values()))
    command = recipe.compile_command(library, platform.machine(), processor)
    subprocess.run(
        [*command, "-O0", "-fsanitize=undefined", "-fsanitize-trap=undefined"], check=True
    )
    run = [sys.executable, "-m", "tests.unit.device.cpu.kernels.page_guard", str(library)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(CASES))]


@pytest.mark.parametrize("operator", ["Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Sqrt"])
def test_infinities_and_nan(operator: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3e38, -3e38], np.float32)
    case = Case("native.map", make_node(operator, 1), [values])
    with np.errstate(all="ignore"):
        plain = drive(operator_node(case.node, case.opset), case.values)
    assert plain is not None
    np.testing.assert_allclose(_outputs(case)[0], plain.outputs[0], rtol=1e-6)


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("target", ["int64", "int32", "int16", "uint16", "int8", "uint8"])
def test_casts_of_what_does_not_fit(source: str, target: str) -> None:
    """The lowest value of an int32 or int64, or its lowest bits, with every instruction set."""
    values = [np.nan, np.inf, -np.inf, 300.7, -1.5, -(2.0**31), 2.0**31, 2.0**63, -(2.0**64), 3e30]
    many = np.array(values * 9, source)
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
    node = make_node("Cast", 1, to=number)
    whole = "int64" if target == "int64" else "int32"
    lowest, above = np.iinfo(whole).min, 2.0 ** (63 if whole == "int64" else 31)
    expected = [int(v) if -above <= v < above else lowest for v in many.tolist()]
    wanted = np.array(expected, np.int64).astype(target)
    np.testing.assert_array_equal(_outputs(Case("native.cast", node, [many]))[0], wanted)


@pytest.mark.parametrize("operator", ["Max", "Min", "Add"])
def test_nan_of_either_operand_wins(operator: str) -> None:
    with_nan = random(40)
    with_nan[::3] = np.nan
    for values in ([with_nan, random(40)], [random(40), with_nan]):
        result = _outputs(Case("native.pair", make_node(operator, 2), values))[0]
        assert (np.isnan(result) == np.isnan(with_nan)).all()


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_masked_rows(operator: str, axis: int) -> None:
    values = random(3, 20)
    values[0, 3:] = -np.inf
    values[1, :] = -np.inf
    values[2, 5] = np.nan
    given = np.ascontiguousarray(values if axis else values.T)
    node = make_node(operator, 1, axis=axis)
    result = _outputs(Case("native.softmax", node, [given]))[0]
    result = result if axis else result.T
    powers = np.exp(result) if operator == "LogSoftmax" else result
    assert (powers[0, 3:] == 0).all()
    assert powers[0, :3].sum() == pytest.approx(1)
    assert np.isnan(result[1:]).all()


def test_attention_of_masked_rows() -> None:
    """What nothing is seen of is 0; a NaN stays in its row."""
    values, mask = masked_rows()
    node = make_node("Attention", 4)
    result = _outputs(Case("native.attention", node, [*values, mask], (), 23))[0]
    few = [values[0], *(array[:, :, :3] for array in values[1:])]
    plain = _outputs(Case("native.attention", make_node("Attention", 3), few, (), 23))[0]
    np.testing.assert_allclose(result[:, :, 0], plain[:, :, 0], rtol=1e-5, atol=1e-6)
    assert (result[:, :, 1] == 0).all()
    assert np.isnan(result[:, :, 2]).all()
    assert np.isfinite(result[:, :, 3]).all()


def test_attention_works_in_less_than_its_scores() -> None:
    """Of twelve heads of 384 queries and keys."""
    spec = [random(1, 12, 384, 64)] * 3
    driven = drive(operator_node(make_node("Attention", 3), 23), spec, compiled=True)
    assert driven is not None
    assert driven.workspace_bytes < 12 * 384 * 384 * 4 / 10


def test_log_of_sums_is_accurate() -> None:
    """Of two values, the other one and 0: log(1 + exp(x)) to the last digits."""
    x = np.linspace(-20, 0, 20_001, dtype=np.float32)
    values = np.stack([x, np.zeros_like(x)], axis=1)
    result = _outputs(Case("native.softmax", make_node("LogSoftmax", 1), [values]))[0]
    exact = x - np.log1p(np.exp(x.astype(np.float64)))
    assert np.abs(result[:, 0] - exact).max() < 2e-6
    many = np.zeros((1, 100_000), np.float32)
    result = _outputs(Case("native.softmax", make_node("LogSoftmax", 1), [many]))[0]
    assert np.abs(result + np.log(1e5)).max() < 2e-6


def test_exp_is_accurate_to_the_last_digits() -> None:
    values = np.linspace(-103, 88.7, 100_000, dtype=np.float32)
    result = _outputs(Case("native.map", make_node("Exp", 1), [values]))[0]
    exact = np.exp(values.astype(np.float64))
    normal = exact > 1.2e-38
    assert np.abs(result[normal] / exact[normal] - 1).max() < 2.5e-7
    assert np.abs(result[~normal] - exact[~normal]).max() <= 1.5e-45


@pytest.mark.parametrize(
    ("operator", "error_max"), [("Tanh", 3e-7), ("Erf", 3e-7), ("Sigmoid", 4e-7)]
)
def test_functions_are_accurate_in_relative_terms(operator: str, error_max: float) -> None:
    import math

    values = np.concatenate([np.linspace(-8, 8, 20_001), np.geomspace(1e-6, 1, 5_000)])
    values = values[values != 0].astype(np.float32)
    result = _outputs(Case("native.map", make_node(operator, 1), [values]))[0]
    exact = {
        "Tanh": np.tanh,
        "Erf": np.vectorize(math.erf),
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }[operator](values.astype(np.float64))
    assert np.abs(result / exact - 1).max() < error_max


@pytest.mark.parametrize(
    ("node", "values", "constants"),
    [
        (make_node("MatMul", 2), [random(5, 5).astype(np.float64)] * 2, ()),
        (make_node("Conv", 2), [random(1, 2, 5, 5), random(2, 2, 3, 3)], ()),
        (make_node("Conv", 2), [random(1, 2, 5, 5, 5), random(2, 2, 3, 3, 3)], (1,)),
        (make_node("MaxPool", 1, 2, kernel_shape=[2, 2]), [random(1, 2, 5, 5)], ()),
        (make_node("Relu", 1), [random(0, 5)], ()),
        (make_node("Attention", 3, softcap=2.0), [random(1, 2, 5, 8)] * 3, ()),
        (make_node("Attention", 3, 4), [random(1, 2, 5, 8)] * 3, ()),
        (make_node("Attention", 4), [random(1, 2, 5, 8)] * 3 + [np.ones((5, 5), bool)], ()),
        (make_node("Attention", 4), [random(1, 2, 5, 8)] * 3 + [random(5, 1)], ()),
        (make_node("Add", 2), [random(8, 1, 8, 1, 8, 9), random(1, 8, 1, 8, 1, 9)], ()),
        (make_node("Add", 2), [random(50, 50, 2), random(50, 50, 2)[:, :1]], ()),
    ],
)
def test_what_is_not_covered_is_left_to_numpy(node, values, constants) -> None:
    assert drive(operator_node(node, 22), values, constants, compiled=True) is None
