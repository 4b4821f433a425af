"""The command line: the only place that prints, formats and exits.

Exit status: 0 done, 1 failed, 2 wrong usage or invalid manifest, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from aegis_pipe.cli import doctor, init, plan, schema, up, validate, verify
from aegis_pipe.errors import AegisError, ManifestError

VERBS = (up, validate, plan, verify, init, schema, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="aegis-pipe",
        description="Many ONNX models on one device, inside a planned memory budget.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show diagnostic messages")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        name = verb.__name__.rpartition(".")[2]
        summary = (verb.__doc__ or "").splitlines()[0]
        own = verbs.add_parser(name, help=summary, description=verb.__doc__)
        verb.add_arguments(own)
        own.set_defaults(run=verb.run)
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except ManifestError as error:
        print(error, file=sys.stderr)
        return 2
    except AegisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error of ours, and nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
