/* Copies between strided views: transposes, concatenations, slices, paddings and their like.
 *
 * A view has five dimensions at most, the outer ones 1 if it has fewer. The last two are copied as
 *
 *     rows      if the last dimension is contiguous on both sides
 *     blocks    of 8 x 8 floats, turned round in registers, if the target is contiguous along the last
 *               dimension and the source along the one before
 *               (bytes by 16 x 16)
 *     elements  otherwise
 */
#include "byte_images.h"
#include "images.h"
#include "step.h"

enum { RANK = 5 };

typedef struct {
    char *to;
    const char *from;
    int64_t shape[RANK], to_strides[RANK], from_strides[RANK]; /* strides in bytes */
} move;

typedef struct {
    const move *moves;
    int64_t count, item; /* item: bytes of an element */
} moving;

#define COPY_ELEMENTS(type)                                                                  \
    for (int64_t i = 0; i < count; i++, to += to_step, from += from_step) {                 \
        type element;                                                                        \
        __builtin_memcpy(&element, from, sizeof element);                                    \
        __builtin_memcpy(to, &element, sizeof element);                                      \
    }

INLINE void copy_elements(char *to, const char *from, int64_t count, int64_t to_step, int64_t from_step,
                          int64_t item) {
    switch (item) {
        case 1: COPY_ELEMENTS(uint8_t) return;
        case 2: COPY_ELEMENTS(uint16_t) return;
        case 4: COPY_ELEMENTS(uint32_t) return;
        case 8: COPY_ELEMENTS(uint64_t) return;
    }
    for (int64_t i = 0; i < count; i++, to += to_step, from += from_step)
        __builtin_memcpy(to, from, (size_t)item);
}

INLINE void copy_row(char *to, const char *from, int64_t bytes) {
    if (bytes % 4) __builtin_memcpy(to, from, (size_t)bytes);
    else copy_floats((float *)to, (const float *)from, bytes / 4);
}

/* [rows][columns] of floats, `from` running along the rows. */
static void turn_round(float *to, int64_t to_row, const float *from, int64_t from_column, int64_t rows,
                       int64_t columns) {
    if (columns < 8 && to_row == columns) {
        /* What `interleave_few` writes too far lies before the end. */
        int64_t row = 0;
        for (; row + 16 <= rows; row += 8) interleave_few(from + row, from_column, columns, to + row * columns);
        to += row * to_row, from += row, rows -= row;
    }
    for (int64_t column = 0; column < columns; column += 8) {
        int64_t wide_rows = column + 8 <= columns ? rows / 8 * 8 : 0;
        for (int64_t row = 0; row < wide_rows; row += 8)
            transpose_8x8(from + column * from_column + row, from_column, to + row * to_row + column, to_row);
        for (int64_t row = wide_rows; row < rows; row++)
            for (int64_t c = column; c < smaller(column + 8, columns); c++)
                to[row * to_row + c] = from[c * from_column + row];
    }
}

/* The last two dimensions. */
INLINE void copy_plane(const move *m, char *to, const char *from, int64_t item) {
    int64_t rows = m->shape[RANK - 2], columns = m->shape[RANK - 1];
    int64_t to_row = m->to_strides[RANK - 2], from_row = m->from_strides[RANK - 2];
    int64_t to_step = m->to_strides[RANK - 1], from_step = m->from_strides[RANK - 1];
    int is_aligned = (to_row | from_step | (int64_t)(uintptr_t)to | (int64_t)(uintptr_t)from) % 4 == 0;
    if (to_step == item && from_step == item) {
        for (int64_t r = 0; r < rows; r++) copy_row(to + r * to_row, from + r * from_row, columns * item);
    } else if (item == 4 && to_step == 4 && from_row == 4 && is_aligned) {
        turn_round((float *)to, to_row / 4, (const float *)from, from_step / 4, rows, columns);
    } else if (item == 1 && to_step == 1 && from_row == 1) {
        turn_bytes((const uint8_t *)from, from_step, columns, rows, 0, (uint8_t *)to, to_row);
    } else {
        for (int64_t r = 0; r < rows; r++)
            copy_elements(to + r * to_row, from + r * from_row, columns, to_step, from_step, item);
    }
}

static void run_moves(const moving *all, worker self) {
    int64_t units = 0;
    for (const move *m = all->moves; m < all->moves + all->count; m++) units += m->shape[0] * m->shape[1] * m->shape[2];
    range mine = part_of(self, units);
    int64_t unit = 0;
    for (const move *m = all->moves; m < all->moves + all->count; m++) {
        int64_t planes = m->shape[0] * m->shape[1] * m->shape[2];
        int64_t first = larger(0, mine.first - unit), last = smaller(planes, mine.last - unit);
        for (int64_t plane = first; plane < last; plane++) {
            int64_t index[3] = {plane / m->shape[2] / m->shape[1], plane / m->shape[2] % m->shape[1],
                                plane % m->shape[2]};
            char *to = m->to;
            const char *from = m->from;
            for (int d = 0; d < 3; d++) to += index[d] * m->to_strides[d], from += index[d] * m->from_strides[d];
            copy_plane(m, to, from, all->item);
        }
        unit += planes;
    }
}

/* Moves whose targets do not touch each other. */
SHARED_KERNEL(aegis_move_apart, moving) { run_moves(arguments, self); }

/* Moves that read what earlier ones have written. */
KERNEL(aegis_move_in_order, moving) { run_moves(arguments, (worker){0, 1, 0}); }
