"""Kernels' times in C against NumPy's: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from aegis_pipe.telemetry.kernel_times import native_functions, numpy_bounds, numpy_place
from aegis_pipe.telemetry.native import SHORT_CALLS

# Close together, so that ends meet starts within a microsecond, and some lie before the clock's 0.
instants = st.integers(-3_000, 9_000)
stamps = st.lists(st.tuples(instants, instants), min_size=1, max_size=40)
offsets = st.integers(-5_000, 2**60)


@pytest.mark.skipif(SHORT_CALLS is None, reason="the exporter's loops are not compiled")
@given(stamps, offsets)
def test_compiled_times_are_the_same(pairs: list[tuple[int, int]], offset_ns: int) -> None:
    assert SHORT_CALLS is not None
    bounds, place = native_functions(SHORT_CALLS)
    data = np.array(pairs, np.int64).tobytes()
    assert bounds(data) == numpy_bounds(data)
    np.testing.assert_array_equal(place(data, offset_ns), numpy_place(data, offset_ns))


def test_neighbours_are_set_apart_and_durations_stay_true() -> None:
    data = np.array([[0, 2_999], [3_000, 3_010], [3_020, 2_000], [9_000, 9_500]]).tobytes()
    assert numpy_bounds(data) == (0, 9_500)
    starts, ends, durations = numpy_place(data, 10_000).tolist()
    assert starts == [10_000, 13_000, 13_020, 19_000]
    assert ends == [12_999, 13_010, 13_020, 19_500]
    assert durations == [2_999, 10, 0, 500]
    # Shown as beginning at 0 us and lasting 3 us, the first would reach into the second.
    starts, ends, durations = numpy_place(np.array([[900, 3_950], [3_960, 4_000]]).tobytes(), 0)
    assert ends.tolist() == [2_900, 4_000]
    assert durations.tolist() == [3_050, 40]
