"""The command line: the only place that prints, formats and exits.

Exit status: 0 done, 1 failed, 2 wrong usage or invalid manifest, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aegis_pipe.cli import standard_streams
from aegis_pipe.cli.standard_streams import tell
from aegis_pipe.errors import AegisError, ManifestError
from aegis_pipe.version import __version__

VERBS = {
    "up": "run a manifest: load its models, feed its pipelines, report at the end",
    "validate": "check a manifest and the models it names; touches no device",
    "plan": "show kernels, memory and schedule of a manifest; reserves nothing",
    "profile": "measure how long a manifest's models take, and keep it beside the manifest",
    "simulate": "predict latencies and misses of a manifest on virtual time",
    "replay": "decide a recorded run again, or under another policy",
    "why": "explain where a request's time went, from a run's log",
    "bench": "measure how fast a manifest's models answer, also beside ONNX Runtime",
    "verify": "compare a model's outputs with ONNX Runtime and ONNX's reference evaluator",
    "trace": "look at recorded traces: summary, page, Perfetto, upload",
    "init": "write a manifest for an ONNX model",
    "schema": "print the JSON Schema of manifests",
    "doctor": "say what this machine has",
}
"""Verbs with a line of help; each is a module of that name here, imported when it is used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    standard_streams.prepare()
    try:
        return _run(_options(arguments))
    except KeyboardInterrupt:
        tell("interrupted")
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; imports the verb that it names."""
    parser = argparse.ArgumentParser(
        prog="aegis-pipe",
        description="Many ONNX models on one device, inside a planned memory budget.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show diagnostic messages")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    words = sys.argv[1:] if arguments is None else arguments
    for name, summary in VERBS.items():
        own = verbs.add_parser(name, help=summary)
        if name in words:
            with _ctrl_c_afterwards():
                verb = importlib.import_module(f"aegis_pipe.cli.{name}")
            own.description = verb.__doc__
            verb.add_arguments(own)
            own.set_defaults(run=verb.run)
    options = parser.parse_args(words)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    return options


@contextmanager
def _ctrl_c_afterwards() -> Iterator[None]:
    """Hand a ctrl-C that comes meanwhile to whom it is for at the end.

    An import runs callbacks whose exceptions Python drops, KeyboardInterrupt among them.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals are the main thread's.
        yield
        return
    came: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if came:
            signal.raise_signal(signal.SIGINT)


def _run(options: argparse.Namespace) -> int:
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except ManifestError as error:
        tell(str(error))
        return 2
    except AegisError as error:
        tell(f"error: {error}")
        return 1
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error of ours, and nobody to tell.
        standard_streams.drop(1)
        return 1
    except UnicodeEncodeError as error:
        tell(
            f"error: `{error.object}` can not be written in {error.encoding}\n"
            "  hint: choose a locale with UTF-8, or set PYTHONUTF8=1"
        )
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        tell(
            f"error: {where}{error.strerror or error}\n"
            "  hint: make room there, or check the path and its permissions"
        )
        standard_streams.drop(1)
        return 1
