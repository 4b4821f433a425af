"""Speaks as `plan_builder.py` does, without cuDNN: convolutions say what shall happen."""

from __future__ import annotations

import os
import pickle
import sys

from aegis_pipe.device.cuda.cudnn_convolution import BuiltPlan

ENDS = 13
"""Of a convolution with so many filters the process ends instead of answering."""
IMPOSSIBLE = 1
"""The position of a plan that can not be built."""

if __name__ == "__main__":
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    properties, capability = pickle.load(requests)
    while True:
        try:
            convolution, index = pickle.load(requests)
        except EOFError:
            break
        if convolution.filters == ENDS:
            os._exit(1)
        name = f"{properties} {capability} {convolution.filters} {index} {os.getpid()}"
        pickle.dump(None if index == IMPOSSIBLE else BuiltPlan(name, index, b"plan"), replies)
        replies.flush()
