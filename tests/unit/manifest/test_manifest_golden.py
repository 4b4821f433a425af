"""Every broken manifest of tests/golden/manifests against its pinned message."""

import shutil
from pathlib import Path

import pytest

from aegis_pipe.manifest import ManifestError, load_manifest

CORPUS = Path(__file__).parents[2] / "golden" / "manifests"
CASES = sorted(CORPUS.glob("*.toml"))


def test_the_corpus_is_there() -> None:
    assert len(CASES) >= 100
    assert {case.with_suffix(".txt") for case in CASES} == set(CORPUS.glob("*.txt"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_message(case: Path, folder: Path, inspector, rewrite_golden: bool) -> None:
    shutil.copy(case, folder / case.name)
    with pytest.raises(ManifestError) as caught:
        load_manifest(case.name, inspect_model=inspector)
    message = f"{caught.value}\n"
    if rewrite_golden:
        case.with_suffix(".txt").write_text(message, "utf-8")
    assert message == case.with_suffix(".txt").read_text("utf-8")
    assert len(caught.value.problems) == message.count(f"\n{case.name}:") + 1
