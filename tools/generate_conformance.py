#!/usr/bin/env python3
"""Write docs/conformance.md: the pinned list of ONNX cases that do not pass, and a GPU's record.

`tools/record_conformance.py` makes the record; the latest one counts.

python tools/generate_conformance.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / "tests" / "conformance" / "not_passed.txt"
PAGE = ROOT / "docs" / "conformance.md"
RECORDS = ROOT / "docs" / "benchmarks"
CASES = {"node": 1884, "simple": 23, "pytorch-converted": 82, "pytorch-operator": 35}

REASONS = {
    "sequence": "sequences and optionals enter or leave the graph; only tensors can",
    "string": "tensors of text; only numbers and bools are planned",
    "reference kernel": "rounded after every step in bfloat16: only the reference kernel does",
    "random": "random operators: the case expects one generator's numbers",
    "Scan before opset 9": "it scans batches then, as no exporter does",
    "gradients": "gradients of a graph are not made",
}


GPU_REASONS = {
    "UnsupportedOperatorError": "refused by name: pictures are decoded on the host",
    "Mismatch": "attention in float16, off by one rounding of a result",
}


def _gpu(pinned: dict[str, str]) -> list[str]:
    """Return the section on the GPU, from the record with the latest date."""
    newest = max(RECORDS.glob("cuda-conformance-*.json"), key=lambda path: path.stem[-10:])
    record = json.loads(newest.read_text("utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    beyond = {name: why for name, why in record["not_passed"].items() if name not in pinned}
    lines = [
        "## On a GPU",
        "",
        f"The CUDA device on an {record['device']} ({record['date']}; {versions}),",
        f"recorded in [{newest.name}](benchmarks/{newest.name}) by `{record['command']}`.",
        "Every operator ran as a kernel of the GPU: nothing is placed on the host.",
        "",
        "| cases | of | pass |",
        "|---|---|---|",
        *(
            f"| {suite} | {count['cases']:,} | **{count['passed']:,}** |"
            for suite, count in record["counts"].items()
        ),
        "",
        "What passes on the CPU and not there:",
        "",
    ]
    by_reason: dict[str, list[str]] = {}
    for name, (kind, _) in beyond.items():
        by_reason.setdefault(GPU_REASONS.get(kind, kind), []).append(name)
    for reason, names in sorted(by_reason.items()):
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        lines.append(f"- {reason}: {listed}")
    return [*lines, ""]


def _suite(name: str) -> str:
    return name.rpartition("/")[0] or "node"


def page() -> str:
    """Return the page's text."""
    lines_read = [line for line in PINNED.read_text("utf-8").splitlines() if line]
    pairs = [(name, reason) for name, _, reason in (line.partition(": ") for line in lines_read)]
    by_reason: dict[str, list[str]] = {}
    for name, reason in pairs:
        by_reason.setdefault(reason, []).append(name)
    passed = {
        suite: count - sum(_suite(name) == suite for name, _ in pairs)
        for suite, count in CASES.items()
    }
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        "# Conformance",
        "",
        "What ONNX's own test suite (onnx 1.23, `onnx.backend.test`) says of the CPU device,",
        "through `aegis_pipe.onnx_backend`. `tests/conformance` runs it and fails if anything",
        "differs from what is listed here. No case counts that needs a reference kernel.",
        "",
        *(
            f"- {suite[0].upper()}{suite[1:]} cases: **{passed[suite]:,} of {count:,} pass**."
            for suite, count in CASES.items()
        ),
        "- Real models: all nine `light_*` networks give their shipped outputs.",
        "",
        "Operands that decide shapes (a reshape's target, a slice's bounds) are inputs in many",
        "cases; they are bound as constants, as `bind` does in a manifest.",
        "",
        "| cases | not passed because |",
        "|---|---|",
        *(f"| {len(names)} | {REASONS.get(reason, reason)} |" for reason, names in ordered),
        "",
        *_gpu(dict(pairs)),
    ]
    for reason, names in ordered:
        lines += [f"## {reason[0].upper()}{reason[1:]}", ""]
        lines += [f"`{name}`" + ("," if name != names[-1] else "") for name in sorted(names)]
        lines += [""]
    return "\n".join(lines)


def main() -> int:
    """Write the page, or with `--check` say whether it is up to date."""
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text("utf-8") == text:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is not up to date: run tools/generate_conformance.py")
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
