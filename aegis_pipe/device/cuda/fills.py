"""Kernels in place of the fills that libraries enqueue.

A captured graph of kernels alone, one behind the other, costs the host 2 to 3 us to launch however
long it is. A fill (`memset`) among them costs another 1.6 us at every launch: 22 us for ResNet-50
at batch 32, whose convolutions by cuDNN fill their semaphores with zeros (H100, driver 580).
"""

from __future__ import annotations

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.compiler import KernelCompiler

_THREADS = 256
_WORDS_PER_THREAD = 4
_BLOCKS_MAX = 1024
_WORD_BYTES = 4

# It may begin before the kernel ahead has ended, which may still use what is filled.
SOURCE = """
extern "C" __global__ void aegis_fill(unsigned* target, unsigned word, unsigned long long words) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
       at < words; at += step) target[at] = word;
}
"""


class Fills:
    """Replaces them in recorded graphs."""

    def __init__(self, compiler: KernelCompiler, *, may_be_early: bool) -> None:
        """`may_be_early`: kernels of this GPU can wait for the one before by themselves."""
        self._kernel = compiler.function(SOURCE, entry="aegis_fill")
        self._may_be_early = may_be_early

    def replace(self, graph: int) -> None:
        """Replace those of whole words in one line; others, which no library has, stay."""
        for fill in driver.fills(graph):
            size_bytes = fill.width * fill.element_bytes
            if fill.height != 1 or size_bytes % _WORD_BYTES or fill.address % _WORD_BYTES:
                continue
            words = size_bytes // _WORD_BYTES
            blocks = -(-words // (_THREADS * _WORDS_PER_THREAD))
            driver.replace_node(
                graph,
                fill.node,
                self._kernel,
                grid=min(max(blocks, 1), _BLOCKS_MAX),
                block=_THREADS,
                arguments=driver.Arguments(
                    [fill.address, word_of(fill.value, fill.element_bytes), words]
                ),
                early=self._may_be_early,
            )


def word_of(value: int, element_bytes: int) -> int:
    """Return the 32 bits that elements of one, two or four bytes fill a word with."""
    bits = 8 * element_bytes
    return (value & (1 << bits) - 1) * (0xFFFFFFFF // ((1 << bits) - 1))
