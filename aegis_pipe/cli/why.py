"""Explain where a request's time went: who was chosen, by which rule, and who held it up.

Reads the log that a run wrote (`telemetry.log`), with its older parts beside it, or its traces
(`telemetry.file`): the answer is the same. The parts of a request's time add up to the whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis_pipe.analysis.blame import CAUSES, Explanation, RunLog
from aegis_pipe.cli.arguments import positive
from aegis_pipe.cli.standard_streams import tell
from aegis_pipe.cli.tables import counted, table
from aegis_pipe.errors import PermanentError
from aegis_pipe.manifest import load_manifest
from aegis_pipe.telemetry.numbers import json_number
from aegis_pipe.telemetry.trace_file import read_runs
from aegis_pipe.telemetry.trace_log import dropped_events, log_lines

_CULPRITS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the request or `--worst`, the log, and `--json`."""
    parser.add_argument(
        "request", nargs="?", type=_request, help="number of a request: 17 or req-17"
    )
    parser.add_argument(
        "--from", dest="source", required=True, metavar="FILE",
        help="the run's log or its traces (JSON lines), or the manifest that names them",
    )  # fmt: skip
    parser.add_argument(
        "--worst", type=positive, metavar="N", help="the N longest requests instead"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _request(text: str) -> str:
    number = text.removeprefix("req-")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number such as 17 or req-17, found {text!r}")
    return f"req-{int(number)}"


def run(options: argparse.Namespace) -> int:
    """Explain and print; 1 if the log does not have the request."""
    if (options.request is None) == (options.worst is None):
        tell("error: give a request, or --worst N")
        return 2
    path = _recording_of(Path(options.source))
    is_trace = _is_trace(path)
    log = RunLog(_trace_lines(path) if is_trace else _log_lines(path))
    if not log.requests:
        raise PermanentError(
            "no request ended in it",
            context=str(path),
            hint="let the run go on for longer; of traces, those that were not sampled are gone",
        )
    if options.worst is not None:
        explanations = _worst(log, options.worst, path, is_trace)
        if options.json:
            print(json.dumps([_as_json(each) for each in explanations], indent=2))
        else:
            print(_worst_text(explanations))
        return 0
    request = options.request
    if request not in log.requests:
        raise PermanentError(
            f"it has no end of request {request}",
            context=str(path),
            hint="`aegis-pipe why --worst 10` lists requests; of a log the parts older than "
            "`telemetry.log.keep` are gone, of traces those that were not sampled",
        )
    explanation = _explain(log, request, path, is_trace)
    print(json.dumps(_as_json(explanation), indent=2) if options.json else _as_text(explanation))
    return 0


def _worst(log: RunLog, count: int, path: Path, is_trace: bool) -> list[Explanation]:
    """Explain the longest requests; those that can not be are named, and refused if all are so."""
    explanations, refusals = [], {}
    for request in log.worst(count):
        try:
            explanations.append(_explain(log, request, path, is_trace))
        except PermanentError as error:
            refusals[request] = error
    if refusals:
        first = next(iter(refusals.values()))
        if not explanations:
            raise first
        shown = ", ".join(list(refusals)[:_CULPRITS_SHOWN])
        tell(
            f"note: {len(refusals)} of the {counted(count, 'longest request')} can not be "
            f"explained: {shown}{_more(len(refusals))}\n  {first}"
        )
    return explanations


def _explain(log: RunLog, request: str, path: Path, is_trace: bool) -> Explanation:
    missing = log.missing(request)
    if missing:
        raise PermanentError(
            f"{counted(missing, 'decision')} or requests around {request} are not in it, so who "
            "held it up is not known",
            context=str(path),
            hint="not every trace was kept: record with `traces = { ratio = 1.0 }` under "
            "`[telemetry]`, or explain it from the run's log (`telemetry.log`)"
            if is_trace
            else "older parts of the log are gone, or events were lost: raise `telemetry.log.keep` "
            "or `telemetry.ring_capacity` and run it again",
        )
    return log.explain(request)


def _recording_of(path: Path) -> Path:
    if path.suffix != ".toml":
        return path
    manifest = load_manifest(path)
    if manifest.telemetry.log is not None:
        return manifest.resolve(manifest.telemetry.log.path)
    if manifest.telemetry.file:
        return manifest.resolve(manifest.telemetry.file)
    raise PermanentError(
        "the manifest names neither a log nor a file for traces",
        context=str(path),
        hint='add `log = { path = "events.jsonl" }` under `[telemetry]` and run it again',
    )


def _is_trace(path: Path) -> bool:
    """Return whether the first line is one of OTLP JSON."""
    first = next(_lines(path), {})
    return isinstance(first, dict) and "resourceSpans" in first


def _trace_lines(path: Path) -> Iterator[dict[str, Any]]:
    runs = read_runs(path)
    if len(runs) > 1:
        tell(f"note: {path} has {len(runs)} runs; this is about the last")
    traces = runs[-1].traces
    if dropped := dropped_events(traces):
        tell(
            f"note: the run lost {counted(dropped, 'event')}; what they would have told is put "
            "down to `host`"
        )
    return log_lines(traces)


def _log_lines(path: Path) -> Iterator[dict[str, Any]]:
    return (line for part in _parts(path) for line in _lines(part))


def _parts(path: Path) -> list[Path]:
    """Return the files of a log, oldest first: full ones are called `<path>.1` (latest) and up."""
    parts = [path]
    while (older := path.with_name(f"{path.name}.{len(parts)}")).is_file():
        parts.append(older)
    return parts[::-1]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                try:
                    yield json.loads(text)
                except ValueError as error:
                    raise PermanentError(
                        f"line {number} is no JSON: {error}",
                        context=str(path),
                        hint="`telemetry.log` and `telemetry.file` write such files; the last line "
                        "of a run that was killed may be cut off: delete it",
                    ) from error
    except UnicodeDecodeError as error:
        raise PermanentError(
            "this is no text, and so neither a log nor traces",
            context=str(path),
            hint="name the file that the manifest's `telemetry.log` or `telemetry.file` writes",
        ) from error
    except OSError as error:
        raise PermanentError(
            f"it can not be read: {error.strerror}",
            context=str(path),
            hint="run the manifest with a `telemetry.log` or `telemetry.file` first",
        ) from error


def _as_text(it: Explanation) -> str:
    head = f"{it.request} ({it.model}, priority {it.priority}): {it.outcome}"
    head += f" for {it.reason}" if it.reason else ""
    lines = [f"{head} after {_ms(it.total_ns)} ms{_due(it)}", ""]
    if it.rule:
        others = ", ".join(
            f"{rival.request} ({rival.model}) {rival.score:g}" for rival in it.candidates[1:]
        )
        score = f" with {it.candidates[0].score:g}" if it.candidates else ""
        lines.append(
            f"chosen on {it.stream} by `{it.policy}`: {it.rule}{score}, of {it.queue_depth} waiting"
        )
        lines.append(f"  against {others or 'nobody'}")
    else:
        lines.append(f"never chosen by `{it.policy}`" if it.policy else "never chosen")
    if it.lost:
        shown = ", ".join(it.lost[:_CULPRITS_SHOWN])
        lines.append(f"  while it waited the stream went to {shown}{_more(len(it.lost))}")
    rows = [
        (cause, _ms(duration_ns), f"{duration_ns / max(it.total_ns, 1):.1%}")
        for cause, duration_ns in it.by_cause().items()
    ]
    rows.append(("total", _ms(it.total_ns), "100.0%"))
    lines += ["", table(("where", "ms", "share"), rows)]
    culprits = it.by_culprit()
    if culprits:
        lines += ["", "waited for"]
        lines += [
            f"  {_ms(piece.duration_ns)} ms {'behind' if piece.cause == 'queue' else 'blocked by'} "
            f"{piece.request} ({piece.model})"
            + (f", segment {piece.segment}" if piece.segment >= 0 else "")
            for piece in culprits[:_CULPRITS_SHOWN]
        ]
    return "\n".join(lines)


def _more(count: int) -> str:
    return f" and {count - _CULPRITS_SHOWN} more" if count > _CULPRITS_SHOWN else ""


def _due(it: Explanation) -> str:
    if it.deadline_ns is None:
        return ""
    over_ns = it.end_ns - it.deadline_ns
    what = "late" if over_ns > 0 else "before its deadline"
    return f", {_ms(abs(over_ns))} ms {what}"


def _worst_text(explanations: list[Explanation]) -> str:
    rows = []
    for it in explanations:
        sums, culprits = it.by_cause(), it.by_culprit()
        worst = f"{culprits[0].request} ({culprits[0].model})" if culprits else "-"
        rows.append(
            (it.request, it.model, it.outcome, _ms(it.total_ns), *map(_ms, sums.values()), worst)
        )
    header = ("request", "model", "outcome", "total", *CAUSES, "longest behind")
    return f"times in ms\n\n{table(header, rows, left=3)}"


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:.3f}"


def _as_json(it: Explanation) -> dict[str, Any]:
    values = dataclasses.asdict(it)
    values["pieces"] = [piece._asdict() for piece in it.pieces]
    for rival in values["candidates"]:
        rival["score"] = json_number(rival["score"])
    return values | {"total_ns": it.total_ns, "by_cause_ns": it.by_cause()}
