import tomllib

import pytest
import tomli_w
from hypothesis import given, strategies as st

from aegis_pipe.manifest.locator import locate

TEXT = '''\
# comment = 1
name = "a # b"  # text
"quoted key" = 1
literal."dotted".key = 2
[table]
list = [
  1, # one
  [2, 3],
  { x = 4, "y" = 5 },
]
multi = """
[not a header]
x = "1"
"""
raw = \'\'\'it's\'\'\'
[[rows]]
a = 1
[[rows]]
a = 2
[rows.sub]
b = 1979-05-27 07:32:00Z
[[rows.cells]]
c = 1
[[rows.cells]]
c = 2
'''


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        (("name",), 2, 8),
        (("quoted key",), 3, 16),
        (("literal", "dotted", "key"), 4, 24),
        (("table", "list", 0), 7, 3),
        (("table", "list", 1, 1), 8, 7),
        (("table", "list", 2, "x"), 9, 9),
        (("table", "list", 2, "y"), 9, 18),
        (("table", "multi"), 11, 9),
        (("table", "raw"), 15, 7),
        (("rows", 0, "a"), 17, 5),
        (("rows", 1, "a"), 19, 5),
        (("rows", 1, "sub", "b"), 21, 5),
        (("rows", 1, "cells", 0, "c"), 23, 5),
        (("rows", 1, "cells", 1, "c"), 25, 5),
        (("rows", 1, "missing"), 18, 1),
        (("table", "missing", 3, "deep"), 5, 1),
        (("missing",), 1, 1),
    ],
)
def test_position_of_values(path: tuple[str | int, ...], line: int, column: int) -> None:
    tomllib.loads(TEXT)
    assert locate(TEXT).position(path) == (line, column)


def test_position_of_keys() -> None:
    locations = locate(TEXT)
    assert locations.position(("table", "list", 2, "y"), at_key=True) == (9, 12)
    assert locations.position(("rows", 1, "sub"), at_key=True) == (20, 1)


def test_duplicate() -> None:
    locations = locate("a = 1\nb = 2\na = 3\n")
    assert locations.duplicate == (("a",), 0, 12)


def test_a_section_named_by_an_earlier_one_is_no_duplicate() -> None:
    locations = locate("[a.b]\nc = 1\n[a]\nd = 2\n")
    assert locations.duplicate is None
    assert locations.position(("a",), at_key=True) == (3, 1)


@given(st.text(alphabet="a.\"'=[]{}#,\n\\ 1", max_size=40))
def test_any_text_is_scanned(text: str) -> None:
    locations = locate(text)
    assert all(0 <= offset <= len(text) for offset in locations.keys.values())


SCALARS = st.integers() | st.booleans() | st.text(max_size=6) | st.floats(allow_nan=False)
TABLES = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@given(TABLES)
def test_every_leaf_is_where_it_says(table: dict[str, object]) -> None:
    text = tomli_w.dumps(table)
    locations = locate(text)
    for path, value in _leaves(tomllib.loads(text), ()):
        written = text[locations.values[path] :]
        if isinstance(value, bool):
            assert written.startswith("true" if value else "false")
        elif isinstance(value, str):
            assert written[0] in "\"'"
        else:
            assert written[0] in "-0123456789i"


def _leaves(value, path):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value
