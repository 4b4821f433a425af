/* Chains of element-by-element operators: all of them over one tile before the next one is begun.
 *
 * What lies between two of them never leaves the first-level cache. Each step is the function of its
 * operator's own kernel, over a run of the tile; so it gives the same bits.
 */
#include "step.h"

enum { RANK = 6, OPERANDS = 3, INPUTS = 16, REGISTERS = 8, STEPS = 16 };

/* A run of elements; with a step of 0, one for all. */
typedef struct { const void *data; int64_t step; } operand;

typedef void (*tile_function)(const operand *x, void *y, int64_t count, float p, float q);

#define ON_TILES(name) \
    EXPORT void aegis_##name##_on_tiles(const operand *x, void *y, int64_t count, float p, float q)
#define MAP(name, expression)                                      \
    MAP_RUN(name, expression)                                      \
    ON_TILES(name) { name##_run(x[0].data, y, count, p, q); }
#define PAIR(name, expression)                                     \
    PAIR_RUN(name, expression)                                     \
    ON_TILES(name) {                                               \
        (void)p, (void)q;                                          \
        name##_run(x[0].data, x[1].data, y, count, x[0].step, x[1].step); \
    }
#define COMPARE(name, type, expression)                            \
    COMPARE_RUN(name, type, expression)                            \
    ON_TILES(name) {                                               \
        (void)p, (void)q;                                          \
        name##_run(x[0].data, x[1].data, y, count, x[0].step, x[1].step); \
    }
#define SELECT(name, type)                                         \
    SELECT_RUN(name, type)                                         \
    ON_TILES(select_##name) {                                      \
        (void)p, (void)q;                                          \
        select_##name##_run(x[0].data, x[1].data, x[2].data, y, count, x[0].step, x[1].step, x[2].step); \
    }
#define CAST(name, from, to, expression)                           \
    CAST_RUN(name, from, to, expression)                           \
    ON_TILES(cast_##name) {                                        \
        (void)p, (void)q;                                          \
        cast_##name##_run(x[0].data, y, count);                    \
    }

#include "elementwise.h"
#include "comparisons.h"
#include "conversions.h"

typedef struct {
    tile_function function;
    int64_t operands[OPERANDS]; /* what they are: inputs, then registers, then the result's tile */
    int64_t result;             /* likewise */
    float p, q;                 /* the function's parameters */
} chain_step;

typedef struct {
    const char *data;
    int64_t size;              /* of an element, in bytes */
    int64_t strides[RANK];     /* in elements; the last one is 0 or 1 */
    int64_t place;             /* in the workspace: where a tile's elements are laid side by side; -1: nowhere */
    int64_t is_periodic;       /* every row has the same elements: laid out once */
} chain_input;

typedef struct {
    char *y;
    int64_t y_size;            /* of an element, in bytes */
    int64_t shape[RANK];       /* of the result; leading ones fill it up */
    int64_t tile;              /* elements of one, at most */
    int64_t rows;              /* of one tile; 0: it is a part of a row, nothing is laid out */
    char *workspace;
    int64_t workspace_bytes;   /* of one thread: registers, then what is laid out */
    int64_t registers[REGISTERS]; /* where in the workspace each lies */
    int64_t input_count, register_count, step_count;
    chain_input inputs[INPUTS];
    chain_step steps[STEPS];
} chain;

/* A row of `count` elements that lie one after the other (or are one) to where the tile has them. What
 * lies behind the row may be written over: the next row does not lie there yet. */
INLINE void lay_row(char *to, const char *from, int64_t count, int64_t size, int64_t step) {
    if (step && size == 4) {
        copy_floats((float *)(void *)to, (const float *)(const void *)from, count);
    } else if (step) {
        __builtin_memcpy(to, from, (size_t)(count * size));
    } else if (size == 4) {
        int32_t value;
        __builtin_memcpy(&value, from, sizeof value);
        wide_int filled = (wide_int){} + value;
        for (int64_t i = 0; i < count; i += WIDE) __builtin_memcpy(to + 4 * i, &filled, sizeof filled);
    } else if (size == 1) {
        __builtin_memset(to, *from, (size_t)count);
    } else {
        for (int64_t i = 0; i < count; i++) __builtin_memcpy(to + i * size, from, (size_t)size);
    }
}

/* Rows of an operand from coordinates `at` on, side by side. */
static void lay_out(const chain_input *x, const int64_t *shape, const int64_t *at, int64_t rows, char *to) {
    int64_t here[RANK], offset = 0, length = shape[RANK - 1], step = x->strides[RANK - 1];
    for (int d = 0; d < RANK - 1; d++) {
        here[d] = at[d];
        offset += at[d] * x->strides[d];
    }
    for (int64_t row = 0; row < rows; row++) {
        lay_row(to + row * length * x->size, x->data + offset * x->size, length, x->size, step);
        for (int d = RANK - 2; d >= 0; d--) {
            offset += x->strides[d];
            if (++here[d] < shape[d]) break;
            offset -= x->strides[d] * shape[d];
            here[d] = 0;
        }
    }
}

SHARED_KERNEL(aegis_chain, chain) {
    const chain *c = arguments;
    char *workspace = c->workspace + self.thread * c->workspace_bytes;
    operand values[INPUTS + REGISTERS + 1];
    int64_t length = c->shape[RANK - 1], row_count = 1;
    for (int d = 0; d < RANK - 1; d++) row_count *= c->shape[d];
    for (int64_t i = 0; i < c->register_count; i++)
        values[c->input_count + i] = (operand){workspace + c->registers[i], 1};
    int64_t result = c->input_count + c->register_count;
    int64_t pieces = c->rows ? 1 : ceil_divide(length, c->tile); /* of a row */
    int64_t tiles = c->rows ? ceil_divide(row_count, c->rows) : row_count * pieces;
    range mine = part_of(self, tiles);
    for (int64_t tile = mine.first; tile < mine.last; tile++) {
        int64_t row = c->rows ? tile * c->rows : tile / pieces;
        int64_t start = c->rows ? 0 : tile % pieces * c->tile;
        int64_t rows = c->rows ? smaller(c->rows, row_count - row) : 1;
        int64_t count = c->rows ? rows * length : smaller(c->tile, length - start);
        int64_t at[RANK], rest = row;
        for (int d = RANK - 2; d >= 0; d--) {
            int64_t size = c->shape[d];
            at[d] = size == 1 ? 0 : rest % size;
            rest = size == 1 ? rest : rest / size;
        }
        for (int64_t i = 0; i < c->input_count; i++) {
            const chain_input *x = &c->inputs[i];
            int64_t step = x->strides[RANK - 1], offset = start * step;
            if (x->place < 0) {
                for (int d = 0; d < RANK - 1; d++) offset += at[d] * x->strides[d];
                values[i] = (operand){x->data + offset * x->size, step};
            } else {
                if (!x->is_periodic || tile == mine.first) lay_out(x, c->shape, at, rows, workspace + x->place);
                values[i] = (operand){workspace + x->place, 1};
            }
        }
        char *y = c->y + (row * length + start) * c->y_size;
        values[result] = (operand){y, 1};
        for (int64_t i = 0; i < c->step_count; i++) {
            const chain_step *s = &c->steps[i];
            operand x[OPERANDS] = {values[s->operands[0]], values[s->operands[1]], values[s->operands[2]]};
            s->function(x, (void *)values[s->result].data, count, s->p, s->q);
        }
    }
}
