"""Every file that the architecture page names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_named_files_exist() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:aegis_pipe|schemas)/[\w/.]+)`", page))
    assert len(named) > 25
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def test_tables_that_the_page_names_exist() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tables = re.findall(r"`((?:device|scheduling|execution|pipeline)/[\w/]+\.py)`", page)
    assert len(tables) == 9
    assert [name for name in tables if not (ROOT / "aegis_pipe" / name).exists()] == []
