"""The debug mode of memory finds a planted overrun and names it; sound kernels run undisturbed."""

from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe import open_pipeline
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.kernels.registry import KERNELS, CpuKernel, KernelTable
from aegis_pipe.errors import MemoryOverrunError
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelChoice
from tests.unit.pass_driver import feeds_of, model_of, run_onnxruntime

MODEL = model_of(
    "(float[1,3,8,8] x) => (float[1,4,6,6] y, float[2,16] z)"
    # Sin and Mean are no steps of chains: Exp stays alone.
    "{ c = Conv(x, w) s = Sin(c) e = Exp(s) y = Mean(e, c)"
    "  f = Reshape(x, shape) a, b = Split<axis = 0>(f, halves) j = Concat<axis = 0>(b, a)"
    "  z = Slice(j, zero, two, zero) }",
    {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "shape": np.array([12, 16]),
        "halves": np.array([6, 6]),
        "zero": np.array([0]),
        "two": np.array([2]),
    },
)


def kernels_with(writes):
    """Return the CPU's kernels, but Exp also writes 1.0 to other elements, relative to its own."""

    def bind(request, choice, inputs, outputs, workspace):
        source, result = inputs[0].reshape(-1), outputs[0].reshape(-1)
        pool = result
        while pool.base is not None:
            pool = pool.base
        # As a buggy kernel would, but never beyond the pool: the test has to survive it.
        first = (result.ctypes.data - pool.ctypes.data) // 4
        elements = pool[(result.ctypes.data - pool.ctypes.data) % 4 :]
        elements = elements[: elements.size // 4 * 4].view(np.float32)
        beyond = [first + at for at in writes if 0 <= first + at < elements.size]

        def run():
            np.exp(source, out=result)
            elements[beyond] = 1.0

        return run

    table = KernelTable()
    table.register(CpuKernel(("Exp",), lambda request: KernelChoice("exp.planted"), bind))
    for operator in KERNELS.operators():
        table.register(*(replace(x, operators=(operator,)) for x in KERNELS.candidates(operator)))
    return table


def run(writes, *, watched):
    graph = ModelLoader().load_proto(MODEL, LoadOptions(name="small"))
    with CpuContext(SystemClock(), kernels=kernels_with(writes)) as context:
        stream = context.create_stream(0)
        with StandaloneGraph(graph, context, stream, SystemClock(), watched=watched) as standalone:
            return standalone.run(feeds_of(MODEL))


@pytest.mark.parametrize(
    ("element", "words"),
    [
        (144, "right after the end of `e"),
        (150, "24 bytes after the end of `e"),
        (-1, "4 bytes before the start of `e"),
        (-3, "12 bytes before the start of `e"),
    ],
)
def test_an_overrun_is_found_before_the_next_kernel_runs_and_named(element, words):
    with pytest.raises(MemoryOverrunError) as caught:
        run([element], watched=True)
    message = str(caught.value)
    assert "kernel `exp.planted` wrote outside of its planned memory" in message
    assert words in message
    assert "model `small`, step " in message
    assert "of the model's arena, where nothing lies" in message


def test_one_that_hits_another_tensor_says_whose_bytes_they_are():
    found = set()
    for element in (*range(145, 400, 16), *range(-400, -1, 16)):
        try:
            run([element], watched=True)
        except MemoryOverrunError as error:
            found.add(error.message.rpartition("where ")[2])
    assert any(each.endswith("` lies") for each in found)


def test_without_the_mode_nobody_notices():
    run([144], watched=False)


def test_sound_kernels_run_undisturbed_and_parts_have_guards_of_their_own():
    expected = run_onnxruntime(MODEL, feeds_of(MODEL))
    for got, wanted in zip(run([], watched=True).values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


MANIFEST = """
manifest_version = 1
name = "debugged"
[device]
memory_debug = "canary"
[[models]]
name = "small"
path = "small.onnx"
"""


@pytest.mark.parametrize("is_planted", [False, True])
def test_the_manifest_asks_for_it(tmp_path, monkeypatch, is_planted):
    (tmp_path / "small.onnx").write_bytes(MODEL.SerializeToString())
    manifest = tmp_path / "debugged.toml"
    manifest.write_text(MANIFEST)
    if is_planted:
        monkeypatch.setattr(KERNELS, "_by_operator", kernels_with([144])._by_operator)
        with (
            pytest.raises(MemoryOverrunError, match="after the end of `e"),
            open_pipeline(manifest) as runtime,
        ):
            runtime.infer("small", feeds_of(MODEL))
        return
    with open_pipeline(manifest) as runtime:
        outputs = runtime.infer("small", feeds_of(MODEL))
        for got, wanted in zip(
            outputs.values(), run_onnxruntime(MODEL, feeds_of(MODEL)), strict=True
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)
