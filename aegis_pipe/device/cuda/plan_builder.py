"""A process that builds cuDNN's plans for `plan_builders.py`: pickles come in, pickles go out."""

from __future__ import annotations

import os
import pickle
import sys
from typing import IO

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.cudnn_convolution import (
    Convolution,
    ConvolutionPlans,
    DescribedDevice,
)


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Build plans, each a convolution and a position, until no more are asked for.

    Ends with an error if cuDNN lists none; whoever asks has listed them already.
    """
    properties, capability = pickle.load(requests)
    driver.load_libraries("nvrtc", "cublasLt", "cudnn")
    device = DescribedDevice(properties, capability)
    listed: dict[Convolution, ConvolutionPlans] = {}
    while True:
        try:
            convolution, index = pickle.load(requests)
        except EOFError:
            return
        if convolution not in listed:
            listed[convolution] = ConvolutionPlans(device, convolution)
        pickle.dump(listed[convolution].build(index), replies)
        replies.flush()


if __name__ == "__main__":
    # Whatever libraries print goes elsewhere.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, answers)
