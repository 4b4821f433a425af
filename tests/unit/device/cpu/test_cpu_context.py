from collections.abc import Callable

import numpy as np
import pytest
import threadpoolctl

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.kernels import compiled_elementwise_chains, native
from aegis_pipe.device.cpu.kernels.product_endings import ENDINGS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel, KernelTable
from aegis_pipe.device.cpu.region import host_bytes
from aegis_pipe.device.protocols import DeviceCapabilities
from aegis_pipe.errors import KernelError, PermanentError, UnsupportedOperatorError
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.tensor import TensorSpec

FLOATS = TensorSpec(np.dtype(np.float32), (4,))
HALVES = TensorSpec(np.dtype(np.float16), (4,))


def _kernel(name: str, run: Callable[..., object], dtype: type | None = None, **offer: object):
    """A kernel for Scale that takes one dtype only."""

    def choose(request: KernelRequest) -> KernelChoice | None:
        fits = dtype is None or request.inputs[0].dtype == dtype
        return KernelChoice(name, **offer) if fits else None

    def bind(request, choice, inputs, outputs, workspace):
        return lambda: run(inputs, outputs, workspace)

    return CpuKernel(("Scale", "Softmax"), choose, bind)


def _open(*kernels: CpuKernel) -> CpuContext:
    table = KernelTable()
    table.register(*kernels)
    return CpuContext(SystemClock(), kernels=table)


def _request(spec: TensorSpec = FLOATS, **facts: object) -> KernelRequest:
    return KernelRequest("Scale", "scale_1", {}, (spec,), (spec,), **facts)


def _write(factor: float):
    return lambda inputs, outputs, _: np.multiply(inputs[0], factor, out=outputs[0])


def test_first_kernel_that_offers_is_chosen_and_bound() -> None:
    kernels = (
        _kernel("scale.half", _write(2), np.float16),
        _kernel("scale.any", _write(3)),
        _kernel("scale.late", _write(4)),
    )
    with _open(*kernels) as device:
        stream = device.create_stream(0)
        for spec, name, factor in ((HALVES, "scale.half", 2), (FLOATS, "scale.any", 3)):
            request = _request(spec)
            choice = device.select(request)
            assert choice.kernel == name
            x, y = device.allocate(spec.size_bytes), device.allocate(spec.size_bytes)
            device.write(x, np.ones(4, spec.dtype))
            graph = device.record([device.bind(request, choice, [x], [y], None)])
            graph.launch(stream)
            stream.synchronise()
            result = np.empty(4, spec.dtype)
            device.read(y, result)
            assert (result == factor).all()
            x.close()
            y.close()
        stream.close()


def test_reference_is_chosen_last() -> None:
    request = _request(reference=lambda inputs: inputs)
    with _open(_kernel("scale.half", _write(2), np.float16)) as device:
        choice = device.select(request)
        assert choice.kernel == "reference.Scale"
        assert choice.is_reference
        assert choice.cost == 8
    with _open(_kernel("scale.any", _write(2))) as device:
        assert device.select(request).kernel == "scale.any"


def test_refusal_of_operands_lists_them() -> None:
    with (
        _open(_kernel("scale.half", _write(2), np.float16)) as device,
        pytest.raises(UnsupportedOperatorError) as caught,
    ):
        device.select(_request())
    assert caught.value.context == "node `scale_1`"
    assert "runs `Scale` on (float32[4])" in caught.value.message


def test_refusal_of_an_operator_suggests_near_ones() -> None:
    request = KernelRequest("LogSoftmax", "scores", {}, (FLOATS,), (FLOATS,))
    with (
        _open(_kernel("k", _write(2))) as device,
        pytest.raises(UnsupportedOperatorError) as caught,
    ):
        device.select(request)
    assert caught.value.message == "the CPU has no kernel for operator `LogSoftmax`"
    assert caught.value.hint == "did you mean `Softmax`?"


def test_packed_constants_and_workspace_arrive_as_bytes() -> None:
    seen: list[tuple[object, ...]] = []

    def run(inputs, outputs, workspace) -> None:
        seen.append((inputs[0].dtype, inputs[0].shape, workspace.dtype, workspace.shape))

    packed = {0: PackedConstant("tiles", 24, lambda array: array)}
    with _open(_kernel("k", run, workspace_bytes=100, packed=packed)) as device:
        choice, stream = device.select(_request()), device.create_stream(0)
        x, y, scratch = device.allocate(24), device.allocate(16), device.allocate(100)
        device.record([device.bind(_request(), choice, [x], [y], scratch)]).launch(stream)
        stream.synchronise()
        assert seen == [(np.uint8, (24,), np.uint8, (100,))]
        with pytest.raises(AssertionError, match="without its workspace"):
            device.bind(_request(), choice, [x], [y], None)
        with pytest.raises(AssertionError, match="tiles"):
            device.bind(_request(), choice, [y], [y], scratch)
        device.close()


def test_bind_asserts_sizes_and_offers() -> None:
    with _open(_kernel("k", _write(2))) as device:
        region = device.allocate(15)
        with pytest.raises(AssertionError, match=r"float32\[4\] is bound to"):
            device.bind(_request(), KernelChoice("k"), [region], [region], None)
        right = device.allocate(16)
        with pytest.raises(AssertionError, match="other was not offered for Scale"):
            device.bind(_request(), KernelChoice("other"), [right], [right], None)
        device.close()


def test_a_view_of_other_bytes_asserts() -> None:
    with _open(_kernel("k", _write(2), view=(0, 0))) as device:
        choice = device.select(_request())
        x, y = device.allocate(16), device.allocate(16)
        with pytest.raises(AssertionError, match="different bytes"):
            device.bind(_request(), choice, [x], [y], None)
        assert device.bind(_request(), choice, [x], [x.view(0, 16)], None).kernel == "k"
        device.close()


@pytest.mark.parametrize(
    ("result", "message", "hint"),
    [
        ([np.zeros(3, np.float32)], "float32[3] but float32[4] was planned", "depends on data"),
        ([np.zeros(4, np.float64)], "float64[4] but float32[4] was planned", "another dtype"),
        ([], "returned 0 of 1 results", ""),
    ],
)
def test_reference_results_are_checked(result: list[np.ndarray], message: str, hint: str) -> None:
    request = _request(reference=lambda _: result)
    with _open() as device:
        stream, x = device.create_stream(0), device.allocate(16)
        call = device.bind(request, device.select(request), [x], [x], None)
        device.record([call]).launch(stream)
        with pytest.raises(KernelError) as caught:
            stream.synchronise()
        assert caught.value.context == "node `scale_1`, kernel `reference.Scale`"
        assert message in caught.value.message
        assert hint in caught.value.hint
        device.close()


def test_reference_function_can_not_write_to_its_operands() -> None:
    def spoil(inputs):
        inputs[0][0] = 1

    request = _request(reference=spoil)
    with _open() as device:
        stream, x = device.create_stream(0), device.allocate(16)
        call = device.bind(request, device.select(request), [x], [x], None)
        device.record([call]).launch(stream)
        with pytest.raises(KernelError, match="read-only"):
            stream.synchronise()
        assert not host_bytes(x).any()
        device.close()


def test_description_and_capabilities() -> None:
    with _open() as device:
        facts = device.description
        assert facts.name == "cpu"
        assert facts.alignment_bytes == 64
        versions = dict(facts.library_versions)
        assert versions["numpy"] == np.__version__
        assert versions["kernels"] == native.STATUS
        assert any("threads=1" in version for version in versions.values())
        assert device.capabilities == DeviceCapabilities(
            async_copy=True,
            notifies_progress=True,
            channels_last=native.LIBRARY is not None,
            fused_attention=native.LIBRARY is not None,
            elementwise_chains=compiled_elementwise_chains.STEPS,
            fused_inverted_residuals=native.LIBRARY is not None,
            product_endings=ENDINGS if native.LIBRARY is not None else (),
            steady_at_once=True,
            watches_memory=True,
            parallel_writes=True,
        )


def test_blas_threads_are_limited_while_open() -> None:
    def threads() -> list[int]:
        found = threadpoolctl.threadpool_info()
        return [one["num_threads"] for one in found if one["user_api"] == "blas"]

    before = threads()
    with CpuContext(SystemClock(), threads=1):
        assert set(threads()) == {1}
    assert threads() == before


def test_too_large_an_allocation_states_sizes() -> None:
    with _open() as device, pytest.raises(PermanentError) as caught:
        device.allocate(3 << 50)
    assert "3,221,225,472.0 MiB were asked for" in caught.value.message
    assert "MiB of memory are available" in caught.value.message


def test_unclosed_context_warns() -> None:
    device = _open()
    with pytest.warns(ResourceWarning, match="unclosed <CpuContext"):
        del device


def test_context_closes_what_is_left_and_then_asserts() -> None:
    device = _open()
    region, stream = device.allocate(16), device.create_stream(0)
    device.close()
    device.close()
    for misuse in (
        lambda: host_bytes(region),
        stream.synchronise,
        device.create_event,
        lambda: device.allocate(1),
    ):
        with pytest.raises(AssertionError, match="used after it was closed"):
            misuse()
