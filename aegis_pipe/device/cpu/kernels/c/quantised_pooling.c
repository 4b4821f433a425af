/* Pools over images of bytes with channels last (N, H, W, C): channels lie in the lanes.
 *
 *     for each output pixel
 *       for each run of channels:  over the taps that lie inside the image
 *
 * Averages are of whole numbers, rescaled once.
 */
#include "byte_images.h"
#include "quantise.h"
#include "step.h"

typedef struct {
    const uint8_t *x;
    uint8_t *y;
    const float *x_scale, *y_scale;          /* averages alone have scales */
    const uint8_t *x_zero, *y_zero;
    int64_t batch, channels, height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t dilation_height, dilation_width, pad_top, pad_left, pad_bottom, pad_right;
    int64_t counts_padding, is_signed;
    float low, high;
} byte_pool;

/* Taps of one dimension that lie below `end` and not below 0: `first` to `last`. */
typedef struct { int64_t first, last; } taps;

INLINE taps taps_inside(int64_t start, int64_t kernel, int64_t dilation, int64_t begin, int64_t end) {
    int64_t first = start < begin ? ceil_divide(begin - start, dilation) : 0;
    int64_t last = start >= end ? 0 : smaller(kernel, ceil_divide(end - start, dilation));
    return (taps){first, last};
}

typedef uint8_t many_bytes __attribute__((vector_size(64)));

/* The largest of up to 64 channels; `count` is a constant wherever this is inlined. Signed bytes are
 * compared as unsigned ones, 128 higher. */
INLINE void largest_bytes(const byte_pool *p, const uint8_t *corner, taps rows, taps columns, int64_t count,
                          uint8_t moved, uint8_t *to) {
    many_bytes best = {};
    for (int64_t r = rows.first; r < rows.last; r++)
        for (int64_t c = columns.first; c < columns.last; c++) {
            many_bytes x = {};
            __builtin_memcpy(&x, corner + (r * p->dilation_height * p->width + c * p->dilation_width) * p->channels,
                             (size_t)count);
            best = __builtin_elementwise_max(best, x ^ moved);
        }
    best ^= moved;
    __builtin_memcpy(to, &best, (size_t)count);
}

SHARED_KERNEL(aegis_byte_max_pool, byte_pool) {
    const byte_pool *p = arguments;
    range mine = part_of(self, p->batch * p->out_height);
    uint8_t moved = p->is_signed ? 0x80 : 0, *y = p->y + mine.first * p->out_width * p->channels;
    for (int64_t line = mine.first; line < mine.last; line++)
            for (int64_t j = 0; j < p->out_width; j++, y += p->channels) {
                int64_t image = line / p->out_height, i = line % p->out_height;
                int64_t row = i * p->stride_height - p->pad_top, column = j * p->stride_width - p->pad_left;
                taps rows = taps_inside(row, p->kernel_height, p->dilation_height, 0, p->height);
                taps columns = taps_inside(column, p->kernel_width, p->dilation_width, 0, p->width);
                const uint8_t *corner = p->x + ((image * p->height + row) * p->width + column) * p->channels;
                int64_t c = 0;
                for (; c + 64 <= p->channels; c += 64) largest_bytes(p, corner + c, rows, columns, 64, moved, y + c);
                for (; c + 16 <= p->channels; c += 16) largest_bytes(p, corner + c, rows, columns, 16, moved, y + c);
                for (; c < p->channels; c++) largest_bytes(p, corner + c, rows, columns, 1, moved, y + c);
            }
}

INLINE float zero_of(const byte_pool *p, const uint8_t *zero) {
    if (!zero) return 0;
    return p->is_signed ? (float)(int8_t)*zero : (float)*zero;
}

INLINE wide_int widened(const uint8_t *from, int64_t count, int64_t is_signed) {
    typedef uint8_t lanes __attribute__((vector_size(WIDE)));
    lanes bytes = {};
    if (count >= WIDE) __builtin_memcpy(&bytes, from, WIDE);
    else for (int64_t i = 0; i < count; i++) bytes[i] = from[i];
    return is_signed ? __builtin_convertvector((wide_bytes)bytes, wide_int) : __builtin_convertvector(bytes, wide_int);
}

/* The taps that the average divides by. */
INLINE int64_t divisor(const byte_pool *p, taps rows, taps columns, int64_t row, int64_t column) {
    if (p->counts_padding) {
        rows = taps_inside(row, p->kernel_height, p->dilation_height, -p->pad_top, p->height + p->pad_bottom);
        columns = taps_inside(column, p->kernel_width, p->dilation_width, -p->pad_left, p->width + p->pad_right);
    }
    return larger(1, (rows.last - rows.first) * (columns.last - columns.first));
}

SHARED_KERNEL(aegis_byte_average_pool, byte_pool) {
    const byte_pool *p = arguments;
    range mine = part_of(self, p->batch * p->out_height);
    float x_zero = zero_of(p, p->x_zero), y_zero = zero_of(p, p->y_zero), scale = *p->x_scale / *p->y_scale;
    level_range levels = range_of_levels(y_zero, p->low, p->high);
    uint8_t *y = p->y + mine.first * p->out_width * p->channels;
    for (int64_t line = mine.first; line < mine.last; line++)
            for (int64_t j = 0; j < p->out_width; j++, y += p->channels) {
                int64_t image = line / p->out_height, i = line % p->out_height;
                int64_t row = i * p->stride_height - p->pad_top, column = j * p->stride_width - p->pad_left;
                taps rows = taps_inside(row, p->kernel_height, p->dilation_height, 0, p->height);
                taps columns = taps_inside(column, p->kernel_width, p->dilation_width, 0, p->width);
                const uint8_t *corner = p->x + ((image * p->height + row) * p->width + column) * p->channels;
                float met = (float)((rows.last - rows.first) * (columns.last - columns.first));
                float factor = scale / (float)divisor(p, rows, columns, row, column);
                for (int64_t c = 0; c < p->channels; c += WIDE) {
                    int64_t count = smaller(WIDE, p->channels - c);
                    wide_int sum = {};
                    for (int64_t r = rows.first; r < rows.last; r++)
                        for (int64_t t = columns.first; t < columns.last; t++)
                            sum += widened(corner + (r * p->dilation_height * p->width + t * p->dilation_width) * p->channels + c,
                                           count, p->is_signed);
                    wide real = (__builtin_convertvector(sum, wide) - met * x_zero) * factor;
                    store_bytes(y + c, quantised_levels(real, levels), count);
                }
            }
}
