"""Opens model files, and says what is wrong with what is none."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Final

from aegis_pipe.errors import InvalidModelError

REEXPORT: Final = "export the model again, or check it with `onnx.checker.check_model`"
_POINTER: Final = b"version https://git-lfs.github.com/spec/"


def mapped_file(path: Path) -> memoryview:
    """Return a file's bytes, which are read when they are looked at.

    Raises InvalidModelError for what can not be read, is no regular file, is empty, or is a
    pointer of Git LFS in the place of the file itself.
    """
    try:
        # Looked at before it is opened: to open a FIFO would wait for its other end.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InvalidModelError("is a directory", context=str(path), hint="name the file in it")
        if not stat.S_ISREG(mode):
            hint = "name a file; models are not read from pipes or devices"
            raise InvalidModelError("is no regular file", context=str(path), hint=hint)
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InvalidModelError("is empty", context=str(path), hint=REEXPORT)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise InvalidModelError(
            f"can not be read: {what}", context=str(path), hint="check the path"
        ) from error
    if bytes(data[: len(_POINTER)]) == _POINTER:
        raise InvalidModelError(
            "is a Git LFS pointer in the place of the file",
            context=str(path),
            hint="fetch the file itself with `git lfs pull`",
        )
    return data
