"""Measure how long a manifest's models take on its device, and keep it beside the manifest.

Models are measured alone, beside each other, and in place: by the manifest's own pipelines, without
what their sinks would write. The result, `<manifest>.profile.json`, is what admission proves
deadlines with and what `simulate` draws from. It is void once a model, the device, a library or the
streams are different. With `--validate-stamps` nothing is measured but how far a GPU's stamps are
from its own profiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence

from aegis_pipe.analysis.profile import Profile, median, profile_text
from aegis_pipe.analysis.quantiles import QuantileBound, samples_needed
from aegis_pipe.analysis_builder import PROFILE_ENDING
from aegis_pipe.cli.arguments import duration, positive
from aegis_pipe.cli.standard_streams import tell
from aegis_pipe.cli.tables import table
from aegis_pipe.clock import SystemClock
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest_check import check_manifest
from aegis_pipe.output_file import check_replaceable, replace_file
from aegis_pipe.profiler import ProfileOptions, measure_profile
from aegis_pipe.stamp_validation import MEDIAN_LIMIT_NS, StampComparison, validate_stamps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the manifest, how much to measure, and `--json`."""
    parser.add_argument("manifest", help="path of the TOML file")
    parser.add_argument(
        "--quantile", type=_share, default=0.999, help="share of executions to bound"
    )
    parser.add_argument("--confidence", type=_share, default=0.99, help="how sure to be of it")
    parser.add_argument(
        "--samples",
        type=positive,
        help="requests of each model alone; default: what the bound takes",
    )  # fmt: skip
    parser.add_argument(
        "--pair-samples", type=positive, default=300, help="requests beside each other model"
    )
    parser.add_argument(
        "--limit", type=duration, default=60 * 10**9, metavar="TIME", help="most time for each"
    )
    parser.add_argument(
        "--pipelines", type=duration, default=30 * 10**9, metavar="TIME",
        help="time to run the manifest's pipelines, for times in place; default: 30 s",
    )  # fmt: skip
    parser.add_argument(
        "--validate-stamps",
        action="store_true",
        help="measure nothing else: compare the times of kernels with the GPU's own profiler "
        "(package cupti-python); exit 1 if the median of a model differs by more than 2 us",
    )
    parser.add_argument("--json", action="store_true", help="print the profile as JSON")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Measure, write, and show."""
    manifest = check_manifest(options.manifest)
    if options.validate_stamps:
        return _validate(manifest, as_json=options.json)
    path = manifest.beside(PROFILE_ENDING)
    check_replaceable(path)
    needed = samples_needed(options.quantile, options.confidence)
    profile = measure_profile(
        manifest,
        ProfileOptions(
            options.quantile,
            options.confidence,
            options.samples or needed,
            options.pair_samples,
            options.limit,
            options.pipelines,
        ),
        tell,
    )
    text = profile_text(profile)
    replace_file(path, text)
    print(text if options.json else f"{_as_text(profile)}\n\nwritten to {path}")
    return 0


def _validate(manifest: Manifest, *, as_json: bool) -> int:
    comparisons = validate_stamps(manifest, SystemClock(), tell)
    if as_json:
        print(json.dumps([_described(each) for each in comparisons], indent=1))
    else:
        print(_validation_text(comparisons))
    return 0 if all(each.passed for each in comparisons) else 1


def _described(comparison: StampComparison) -> dict[str, object]:
    return {
        **dataclasses.asdict(comparison),
        "median_difference_ns": comparison.median_ns,
        "worst_difference_ns": int(comparison.differences_ns[comparison.worst]),
        "worst_kernel": comparison.kernels[comparison.worst],
        "passed": comparison.passed,
    }


def _validation_text(comparisons: Sequence[StampComparison]) -> str:
    rows = []
    for each in comparisons:
        worst = each.worst
        rows.append(
            (
                each.model,
                str(len(each.kernels)),
                str(each.left_out),
                _us(statistics.median(each.stamped_ns)),
                _us(statistics.median(each.traced_ns)),
                _us(each.median_ns),
                _us(each.differences_ns[worst]),
                each.kernels[worst],
                "yes" if each.passed else "no",
            )
        )
    header = (
        "model", "kernels", "left out", "stamped p50", "profiler p50", "median difference",
        "worst", "worst kernel", f"within {_us(MEDIAN_LIMIT_NS)}",
    )  # fmt: skip
    return (
        f"times in us; differences are stamps less the device's profiler\n\n{table(header, rows)}"
    )


def _us(duration_ns: float) -> str:
    return f"{duration_ns / 1e3:.2f}"


def _as_text(profile: Profile) -> str:
    rows = [
        (
            model.model,
            str(len(model.segments)),
            str(model.total.samples),
            _ms(model.totals_ns[len(model.totals_ns) // 2]),
            _in_place(profile, model.model),
            _ms(model.total.bound_ns),
            _ms(max(profile.segments_ns(model.model))),
            _ms(sum(profile.segments_ns(model.model))),
            _ms(model.wake.bound_ns),
            _covered(model.total),
        )
        for model in profile.models.values()
    ]
    header = (
        "model", "segments", "samples", "p50", "in place", "bound", "longest segment",
        "all beside others", "wake", "the bound covers",
    )  # fmt: skip
    return f"times in ms\n\n{table(header, rows)}"


def _in_place(profile: Profile, model: str) -> str:
    totals_ns = [hold.total_ns for hold in profile.in_place if hold.model == model]
    return _ms(median(totals_ns)) if totals_ns else "-"


def _covered(bound: QuantileBound) -> str:
    return f"p{bound.quantile * 100:.5g} at {bound.confidence:.0%}"


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:.3f}"
