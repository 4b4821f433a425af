"""Threads that share a stream's kernels: whatever their number, the bits are the same."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.execution.standalone import StandaloneGraph
from tests.unit.pass_driver import feeds_of, graph_of, model_of

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"compiled kernels {native.STATUS}")

SAME = "pads=[1,1,1,1]"


def _values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.2, shape).astype(np.float32)


def image_model() -> onnx.ModelProto:
    """Every kind of convolution and pool, planar ones among them, then a product and a softmax.

    A pool has fewer rows than there are threads, a convolution fewer tiles than fill registers.
    """
    return model_of(
        "(float[2,3,66,70] x) => (float[2,40] y, float[2,128] z) {"
        f" a = Conv <strides=[2,2], {SAME}> (x, stem)"
        " b = Relu (a)"
        f" c = Conv <{SAME}> (b, square)"
        " d = Add (b, c)"
        f" e = Conv <group=32, {SAME}> (d, depthwise)"
        " f = HardSwish (e)"
        f" g = MaxPool <kernel_shape=[3,3], strides=[2,2], {SAME}> (f)"
        " h = Conv (g, pointwise)"
        f" t = Conv <{SAME}> (g, square)"
        " i = Concat <axis=1> (g, h, t)"
        " v = GlobalAveragePool (i)"
        " z = Flatten (v)"
        " j = Conv <group=4> (i, grouped)"
        f" k = AveragePool <kernel_shape=[3,3], {SAME}> (j)"
        " u = ConvTranspose <strides=[2,2]> (k, spread)"
        " l = GlobalAveragePool (u)"
        " m = Flatten (l)"
        " n = MatMul (m, dense)"
        " y = Softmax (n) }",
        {
            "stem": _values(32, 3, 3, 3),
            "square": _values(32, 32, 3, 3),
            "depthwise": _values(32, 1, 3, 3),
            "pointwise": _values(64, 32, 1, 1),
            "grouped": _values(48, 32, 1, 1),
            "spread": _values(48, 48, 3, 3),
            "dense": _values(48, 40),
        },
    )


def block_model() -> onnx.ModelProto:
    """Inverted residual blocks, wide enough to be one kernel each, of rows that no team divides."""
    return model_of(
        "(float[2,3,66,70] x) => (float[2,24,17,18] y) {"
        f" s = Conv <strides=[2,2], {SAME}> (x, stem)"
        " a = Conv (s, widen) b = Relu (a)"
        f" c = Conv <group=72, {SAME}> (b, depthwise) d = Relu (c)"
        " e = Conv (d, narrow) f = Add (e, s)"
        " g = Conv (f, widen) h = Relu (g)"
        f" i = Conv <group=72, strides=[2,2], {SAME}> (h, depthwise)"
        " y = Conv (i, narrow) }",
        {
            "stem": _values(24, 3, 3, 3),
            "widen": _values(72, 24, 1, 1),
            "depthwise": _values(72, 1, 3, 3),
            "narrow": _values(24, 72, 1, 1),
        },
    )


def sequence_model() -> onnx.ModelProto:
    """Products of two results, normalisations, transposes."""
    return model_of(
        "(float[2,50,64] x) => (float[2,50,64] y) {"
        " q = MatMul (x, first)"
        " k = MatMul (x, second)"
        " t = Transpose <perm=[0,2,1]> (k)"
        " s = MatMul (q, t)"
        " p = Softmax (s)"
        " o = MatMul (p, x)"
        " r = Add (o, x)"
        " y = LayerNormalization (r, scale, bias) }",
        {
            "first": _values(64, 64),
            "second": _values(64, 63 + 1),
            "scale": _values(64),
            "bias": _values(64),
        },
    )


def attention_model() -> onnx.ModelProto:
    """Attention of three heads as one kernel, a number of blocks that no team divides evenly."""
    heads = "Transpose <perm=[0,2,1,3]>"
    return model_of(
        "(float[1,397,3,40] x, float[1,331,3,40] z) => (float[1,397,3,40] y) {"
        f" q = {heads} (x) k = Transpose <perm=[0,2,3,1]> (z) v = {heads} (z)"
        " p = MatMul (q, k) a = Mul (p, scale) m = Add (a, mask)"
        f" s = Softmax <axis=-1> (m) w = MatMul (s, v) y = {heads} (w) }}",
        {"scale": np.array(0.15, np.float32), "mask": _values(397, 331)},
    )


def recurrent_model() -> onnx.ModelProto:
    """Layers of every kind; units that fill no vector, sequences that end, one sequence."""
    return model_of(
        "(float[9,3,150] x, float[9,1,150] one) => (float[9,3,300] y, float[9,1,163] z) {"
        " lengths = Constant <value_ints=[9,4,7]> ()"
        " l = Cast <to=6> (lengths)"
        ' a = LSTM <hidden_size=150, direction="bidirectional"> (x, lw, lr, lb, l)'
        " t = Transpose <perm=[0,2,1,3]> (a)"
        " shape = Constant <value_ints=[9,3,300]> ()"
        " b = Reshape (t, shape)"
        " c = GRU <hidden_size=300> (b, gw, gr, gb)"
        " y = Reshape (c, shape)"
        ' e = GRU <hidden_size=190, linear_before_reset=1, direction="reverse"> (one, hw, hr, hb)'
        " i = Constant <value_ints=[1]> ()"
        " f = Squeeze (e, i)"
        " d = RNN <hidden_size=333> (f, rw, rr)"
        " g = Squeeze (d, i)"
        " h = LSTM <hidden_size=163> (g, mw, mr)"
        " z = Squeeze (h, i) }",
        {
            **{"lw": _values(2, 600, 150), "lr": _values(2, 600, 150), "lb": _values(2, 1200)},
            **{"gw": _values(1, 900, 300), "gr": _values(1, 900, 300), "gb": _values(1, 1800)},
            **{"hw": _values(1, 570, 150), "hr": _values(1, 570, 190), "hb": _values(1, 1140)},
            **{"rw": _values(1, 333, 190), "rr": _values(1, 333, 333)},
            **{"mw": _values(1, 652, 333), "mr": _values(1, 652, 163)},
        },
    )


def results(model: onnx.ModelProto, threads: int, *, runs: int = 1) -> Iterator[bytes]:
    graph, feeds = graph_of(model), feeds_of(model)
    with (
        open_device("cpu", clock=SystemClock(), threads=threads).context as context,
        closing(context.create_stream(0)) as stream,
        StandaloneGraph(graph, context, stream, SystemClock()) as standalone,
    ):
        for _ in range(runs):
            yield _bits(standalone.run(feeds))


def _bits(found: Mapping[str, np.ndarray]) -> bytes:
    return b"".join(found[name].tobytes() for name in sorted(found))


@pytest.mark.parametrize(
    "make", [image_model, block_model, sequence_model, attention_model, recurrent_model]
)
def test_bits_do_not_depend_on_the_number_of_threads(make) -> None:
    model = make()
    alone = next(results(model, 1))
    for threads in (2, 3, 5):
        assert set(results(model, threads, runs=5)) == {alone}


def test_two_streams_have_teams_of_their_own() -> None:
    model = image_model()
    graph, feeds = graph_of(model), feeds_of(model)
    alone = next(results(model, 1))
    with open_device("cpu", clock=SystemClock(), threads=2).context as context:
        streams = [context.create_stream(index) for index in range(2)]
        graphs = [StandaloneGraph(graph, context, stream, SystemClock()) for stream in streams]
        for _ in range(3):
            assert {_bits(one.run(feeds)) for one in graphs} == {alone}
        for one in (*graphs, *streams):
            one.close()


@pytest.mark.parametrize("make", [image_model, block_model, sequence_model, attention_model])
def test_bits_do_not_depend_on_the_instruction_set(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models, because the choice of a kernel must not depend on it either."""
    assert native.LIBRARY is not None
    seen = set()
    for level in range(3, native.LIBRARY.isa_level + 1):
        library = native.NativeLibrary(native.FOLDER / f"x86_64_v{level}.so")
        monkeypatch.setattr(native, "LIBRARY", library)
        seen.add(next(results(make(), 2)))
    assert len(seen) <= 1


def long_pause_model(products: int = 60) -> onnx.ModelProto:
    """A shared product, a recurrence that one thread runs for long, shared products again."""
    last = f"p{products}" if products else "h"
    steps = " ".join(
        f"p{i + 1} = MatMul (p{i}, square)" if i else "p1 = MatMul (h, square)"
        for i in range(products)
    )
    return model_of(
        "(float[400,1,256] x) => (float[400,1,256] y) {"
        " a = MatMul (x, square)"
        " r, h1 = RNN <hidden_size=256> (a, w, r1)"
        " one = Constant <value_ints=[1]> ()"
        f" h = Squeeze (r, one) {steps} y = Relu ({last}) }}",
        {"square": _values(256, 256), "w": _values(1, 256, 256), "r1": _values(1, 256, 256)},
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks the kernel about threads")
def test_a_helper_that_fell_asleep_is_called_to_the_next_shared_step() -> None:
    """It falls asleep in the pause, and again behind the products that follow.

    One that is not called sleeps through them, as it does where nothing follows. On a busy machine
    a launch may be over before the helper has run, so that it takes some of them to see it.
    """
    models = (long_pause_model(), long_pause_model(products=0))
    sleeps = [0, 0]
    with (
        open_device("cpu", clock=SystemClock(), threads=2).context as context,
        closing(context.create_stream(0)) as stream,
        ExitStack() as stack,
    ):
        python = {str(thread.native_id) for thread in threading.enumerate()}
        graphs = [
            stack.enter_context(StandaloneGraph(graph_of(model), context, stream, SystemClock()))
            for model in models
        ]
        feeds = feeds_of(models[0])
        for window in range(60):
            for which, graph in enumerate(graphs):
                before = _sleeps(python)
                for _ in range(5):
                    graph.run(feeds)
                sleeps[which] += _sleeps(python) - before
            if window >= 5 and sleeps[0] > 1.5 * sleeps[1]:
                return
    pytest.fail(f"the helper fell asleep {sleeps[0]} times, and {sleeps[1]} where nothing follows")


def _sleeps(without: set[str]) -> int:
    """Return how often this process's other threads have given up their processor to wait."""
    tasks = (task for task in Path("/proc/self/task").iterdir() if task.name not in without)
    texts = [(task / "status").read_text(encoding="ascii") for task in tasks]
    return sum(int(re.findall(r"^voluntary_ctxt_switches:\s*(\d+)$", t, re.M)[0]) for t in texts)


@pytest.mark.parametrize(("cost", "shares"), [(900_000, 0), (1_100_000, 1)])
def test_a_team_sleeps_through_a_stretch_that_is_over_before_it_is_awake(
    cost: float, shares: int
) -> None:
    assert native.LIBRARY is not None
    calls = [_product() for _ in range(2)]
    for call in calls:
        call.weigh(cost)
    batch = native.NativeBatch(native.LIBRARY, [*calls, None])
    assert [step.shares for step in batch._steps] == [shares, shares, 0]


def _product() -> native.NativeCall:
    """A call whose work can be shared; it is not run."""
    assert native.LIBRARY is not None
    size = native.LIBRARY._constant("aegis_softmax_arguments_bytes")
    arguments = type(
        "_Arguments", (ctypes.Structure,), {"_fields_": (("all", ctypes.c_byte * size),)}
    )
    return native.NativeCall(native.LIBRARY, "aegis_softmax", arguments())
