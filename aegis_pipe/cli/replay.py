"""Decide a recorded run again: to the byte, or under another policy.

A run with `record = true` under `[scheduler]` writes `<manifest>.run`. The same recording gives
the same decisions, and so the same journal hash, in every process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tomllib
from pathlib import Path

from aegis_pipe.analysis.replay import replay, what_if
from aegis_pipe.analysis.simulation import Prediction
from aegis_pipe.cli.standard_streams import tell
from aegis_pipe.cli.tables import table
from aegis_pipe.errors import PermanentError
from aegis_pipe.manifest.conversion import manifest_from_table
from aegis_pipe.output_file import replace_file
from aegis_pipe.scheduler_builder import make_scheduler
from aegis_pipe.scheduling.decision import Decision, format_decision
from aegis_pipe.scheduling.recording import read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the recording, `--policy`, `--decisions` and `--json`."""
    parser.add_argument("run_file", metavar="RUN", help="the recording, `<manifest>.run`")
    parser.add_argument("--policy", help="what if this policy had been in force")
    parser.add_argument("--decisions", metavar="FILE", help="write all decisions as JSON lines")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Replay and print; 1 if the decisions are not those of the recorded run."""
    recorded = read_run(Path(options.run_file))
    manifest = manifest_from_table(tomllib.loads(recorded.header["manifest"]), Path())
    segments: dict[str, int] = recorded.header["segments"]
    needed_ns: dict[str, int] = recorded.header["needed_ns"]
    lines: list[str] = []

    def keep(decision: Decision) -> None:
        if options.decisions:
            lines.append(format_decision(decision))

    scheduler = make_scheduler(manifest, segments, needed_ns=needed_ns)
    result = replay(recorded, scheduler, keep)
    if options.decisions:
        replace_file(Path(options.decisions), "\n".join(lines) + "\n")
    others: tuple[Prediction, ...] = ()
    if options.policy:
        section = dataclasses.replace(manifest.scheduler, policy=options.policy)
        changed = dataclasses.replace(manifest, scheduler=section)
        scheduler = make_scheduler(changed, segments, needed_ns=needed_ns, explains=False)
        others = what_if(recorded, result.durations_ns, scheduler)
    same = not recorded.journal or recorded.journal == result.journal
    if options.json:
        values = {
            "journal": result.journal,
            "recorded_journal": recorded.journal or None,
            "decisions": result.decisions,
            "models": [dataclasses.asdict(each) for each in result.predictions],
            "policy": options.policy,
            "what_if": [dataclasses.asdict(each) for each in others],
        }
        print(json.dumps(values, indent=2))
    else:
        verdict = _verdict(recorded.journal, same)
        print(f"journal {result.journal}: {result.decisions} decisions, {verdict}")
        print(f"\n{manifest.scheduler.policy}, as recorded; times in ms")
        print(_table(result.predictions))
        if others:
            print(f"\n{options.policy}, had it been in force\n{_table(others)}")
    if not same:
        difference = PermanentError(
            "the decisions are not those of the recorded run",
            context=options.run_file,
            hint="the recording may be of another version of the scheduler or the policy",
        )
        tell(f"error: {difference}")
    return 0 if same else 1


def _verdict(journal: str, same: bool) -> str:
    if not journal:
        return "and the recorded run was not closed in good order"
    return "as in the recorded run" if same else f"the recorded run has {journal}"


def _table(predictions: tuple[Prediction, ...]) -> str:
    rows = [
        (p.model, str(p.submitted), str(p.completed), str(p.misses), str(p.dropped),
         *(f"{ns / 1e6:.3f}" for ns in (p.p50_ns, p.p99_ns, p.longest_ns)))
        for p in predictions
    ]  # fmt: skip
    return table(("model", "sent", "done", "late", "dropped", "p50", "p99", "longest"), rows)
