"""What a profile makes of stamps."""

import numpy as np

from aegis_pipe.profiler import own_times


def test_kernels_one_behind_the_other_have_all_of_their_time() -> None:
    assert own_times(np.array([[5, 8], [8, 8], [8, 15], [20, 21]])) == [3, 0, 7, 1]


def test_time_of_branches_side_by_side_counts_once() -> None:
    times = np.array([[0, 10], [10, 14], [14, 20], [10, 17], [17, 26], [26, 30]])
    own = own_times(times)
    assert own == [10, 4, 6, 0, 6, 4]
    assert sum(own) == 30
