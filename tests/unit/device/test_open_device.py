import subprocess
import sys
from types import ModuleType

import pytest

from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device import DEVICE_KINDS, DeviceKind, device_kinds, open_device
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.errors import DeviceUnavailableError

CLOCK = SystemClock()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> DeviceKind:
    """A device that is one module and one line of the table."""
    module = ModuleType("toy_device")

    def open_context(*, index: int, clock: Clock, threads: int) -> CpuContext:
        if index > 1:
            raise DeviceUnavailableError("there are two toys")
        return CpuContext(clock, threads=threads)

    module.open_context = open_context
    monkeypatch.setitem(sys.modules, "toy_device", module)
    return DeviceKind("toy", "toy_device", "something to play with")


def test_cpu_by_name() -> None:
    opened = open_device("cpu", clock=CLOCK)
    with opened.context as context:
        assert context.description.name == "cpu"
    assert opened.reason == "`cpu` was asked for"


def test_there_is_one_cpu() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"no `cpu:1`"):
        open_device("cpu", index=1, clock=CLOCK)


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("cdua", "did you mean `cuda`?"), ("fpga", "kinds are cuda, cpu, auto")],
)
def test_unknown_kind(kind: str, hint: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=kind) as caught:
        open_device(kind, clock=CLOCK)
    assert caught.value.hint == hint


def test_every_kind_has_help() -> None:
    kinds = device_kinds()
    assert list(kinds) == ["cuda", "cpu", "auto"]
    assert all(kinds.values())
    assert kinds["auto"] == "the first of cuda, cpu that this machine has"


def test_adding_a_device_is_one_line(toy: DeviceKind) -> None:
    kinds = (*DEVICE_KINDS, toy)
    opened = open_device("toy", index=1, clock=CLOCK, kinds=kinds)
    opened.context.close()
    assert "toy" in device_kinds(kinds)
    with pytest.raises(DeviceUnavailableError, match="two toys"):
        open_device("toy", index=2, clock=CLOCK, kinds=kinds)


def test_auto_takes_the_first_that_opens(toy: DeviceKind) -> None:
    opened = open_device("auto", clock=CLOCK, kinds=(toy, *DEVICE_KINDS))
    opened.context.close()
    assert opened.reason == "`auto` chose toy"


def test_auto_says_what_it_could_not_open(toy: DeviceKind) -> None:
    absent = DeviceKind("absent", "absent_device", "a device that is never there")
    module = ModuleType("absent_device")

    def open_context(*, index: int, clock: Clock, threads: int) -> CpuContext:
        raise DeviceUnavailableError("no such card")

    module.open_context = open_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "absent_device", module)
        opened = open_device("auto", clock=CLOCK, kinds=(absent, toy))
        opened.context.close()
        with pytest.raises(DeviceUnavailableError, match="no such card; toy is not available"):
            open_device("auto", index=2, clock=CLOCK, kinds=(absent, toy))
    assert opened.reason == "`auto` chose toy; absent is not available: no such card"


def test_other_errors_do_not_fall_back(toy: DeviceKind) -> None:
    sys.modules["toy_device"].open_context = lambda **_: 1 // 0
    with pytest.raises(ZeroDivisionError):
        open_device("auto", clock=CLOCK, kinds=(toy, *DEVICE_KINDS))


def test_importing_never_imports_cuda() -> None:
    script = (
        "import sys, aegis_pipe.device, aegis_pipe.device.cpu.context\n"
        "found = [name for name in sys.modules if name.split('.')[0] == 'cuda'"
        " or name.startswith('aegis_pipe.device.cuda')]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
