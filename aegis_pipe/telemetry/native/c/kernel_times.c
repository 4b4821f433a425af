/* The times of a segment's kernels, from stamps of the runtime's clock to those that viewers show.
   `kernel_times.py` does the same with NumPy. */

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Rounded down, as Python's `//` is. */
static int64_t microseconds(int64_t ns) { return ns / 1000 - (ns % 1000 < 0); }

static int64_t end_of(const int64_t *stamp) { return stamp[1] > stamp[0] ? stamp[1] : stamp[0]; }

/* The first start and the last end of `count` > 0 kernels, whose stamps are (start, end). */
EXPORT void aegis_kernel_bounds(const int64_t *stamps, int64_t count, int64_t bounds[2]) {
    int64_t first = stamps[0], last = end_of(stamps);
    for (int64_t i = 1; i < count; i++) {
        int64_t start = stamps[2 * i], end = end_of(stamps + 2 * i);
        first = start < first ? start : first;
        last = end > last ? end : last;
    }
    bounds[0] = first, bounds[1] = last;
}

/* Into `columns`: starts, ends, durations; starts and ends moved by `offset`, and an end made
   earlier where it would seem to lie in the microsecond in which the next kernel begins. */
EXPORT void aegis_place_kernels(const int64_t *stamps, int64_t count, int64_t offset,
                                int64_t *columns) {
    int64_t *starts = columns, *ends = columns + count, *durations = columns + 2 * count;
    for (int64_t i = 0; i < count; i++) {
        durations[i] = end_of(stamps + 2 * i) - stamps[2 * i];
        starts[i] = stamps[2 * i] + offset;
        ends[i] = starts[i] + durations[i];
    }
    for (int64_t i = 0; i + 1 < count; i++) {
        int64_t here = microseconds(starts[i]), next = microseconds(starts[i + 1]);
        if (here + microseconds(durations[i]) >= next && here < next && ends[i] <= starts[i + 1])
            ends[i] = starts[i] + (next - 1 - here) * 1000;
    }
}
