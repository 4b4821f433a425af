"""The kernel that writes the GPU's time."""

from __future__ import annotations

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.compiler import KernelCompiler
from aegis_pipe.device.cuda.staging import pinned_bytes

STAMP = "aegis_stamp"
"""The kernel's name, by which profilers tell it from others."""

_SOURCE = """
extern "C" __global__ void aegis_stamp(unsigned long long* target) {
  unsigned long long t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  *target = t;
}
"""


class Stamps:
    """Enqueues stamps, and takes single ones for the timeline."""

    def __init__(self, compiler: KernelCompiler) -> None:
        self._function = compiler.function(_SOURCE, entry=STAMP)
        self._memory = driver.allocate_pinned(8)

    def enqueue(self, address: int, stream: int) -> None:
        """Enqueue a kernel that writes nanoseconds, as uint64, to an address."""
        arguments = driver.Arguments([address])
        driver.launch(self._function, (1, 1, 1), (1, 1, 1), 0, stream, arguments)

    def enqueue_single(self, stream: int) -> None:
        """Enqueue a stamp that is no graph's."""
        self.enqueue(self._memory, stream)

    def single(self) -> int:
        """Return what the last one wrote, once the stream has reached it."""
        return int(pinned_bytes(self._memory, 8).view("u8")[0])

    def close(self) -> None:
        """Give the memory back; idempotent."""
        if self._memory:
            driver.free_pinned(self._memory)
            self._memory = 0
