/* RNN, GRU and LSTM over float32 sequences.
 *
 *     for each direction
 *       gates[all rows of X] = X W + bias         one matrix product for all times
 *       for each step:
 *         product[batch] = H R                    a product with as many rows as the batch
 *         for each sequence that has not ended:   apply the gates, 16 units at a time
 *
 * W and R are in panels (see tile.h): packed once at load. State is updated in place: all products
 * with the old one are done before. All sequences take their first step at once: a reversed direction
 * begins each at its own last element. One that has ended keeps its state.
 *
 * A team shares a layer: each worker has its own columns of every product and its own units of the
 * gates, for all sequences, and they meet after each. Every sum is one worker's, as alone.
 *
 * W and R of an LSTM may be bytes (byte_products.h). Then X as a whole, and H anew at each step, are
 * quantised over the range of what had not ended one step earlier, as ONNX Runtime does, and their
 * products are exact until they are rescaled. Each worker quantises its own part of every row, for all of them.
 */
#include "byte_results.h"
#include "functions.h"
#include "meeting.h"
#include "quantise.h"
#include "tile.h"

enum { SIGMOID, TANH, RELU, LEAKY_RELU, HARD_SIGMOID, AFFINE, SCALED_TANH, THRESHOLDED_RELU, SOFTSIGN };

typedef struct {
    int64_t kind;
    float alpha, beta;
} activation;

/* One direction of a layer. `x` has time * batch rows, row (t, b) being t * time_rows +
 * b * batch_rows. Strides are in floats. */
typedef struct {
    const float *x;
    const void *w, *r; /* panels of floats, or of bytes with the sums of their columns */
    const float *r_last; /* GRU: R of the candidate, which may meet another state than the gates */
    const float *bias; /* of W, then of R: [2][gates * hidden], or NULL */
    const float *initial_h, *initial_c; /* or NULL: zeros */
    const float *peepholes; /* LSTM: [3][hidden], or NULL */
    const int32_t *lengths; /* [batch], or NULL: all as long as can be */
    float *y, *y_h, *y_c; /* or NULL: not wanted */
    float *workspace;
    int64_t time, batch, inputs, hidden, is_reversed;
    int64_t time_rows, batch_rows, y_time, y_batch, state_batch;
    activation activations[3];
    float clip; /* inf: none */
    int32_t variant; /* LSTM: input_forget; GRU: linear_before_reset */
    byte_scales w_scales, r_scales; /* where W and R are bytes */
} direction;

typedef struct {
    int64_t count;
    direction directions[2];
    meeting_place *place;
} recurrence;

/* A worker's columns of a matrix of bytes, made ready to be multiplied with floats. */
typedef struct {
    const int8_t *panels; /* of all columns */
    int64_t depth, columns;
    range mine;
    byte_results unit; /* of its own; for A on a grid of scale 1 and zero point 1; for others, multiples */
    byte_results results; /* for the grid of the product at hand */
} byte_matrix;

/* Parts of the workspace. */
typedef struct {
    float *gates, *product, *hidden, *cell, *spare, *bias;
    uint8_t *rows, *results; /* of products of bytes: A quantised, and what becomes of their sums */
    byte_matrix recurrence;
    worker self;
    meeting_place *place;
    range units; /* of the hidden ones: whose gates this worker computes */
} working;

static void meet(const working *w) { meet_at(w->place, w->self); }

/* A worker's part of a row, in whole blocks. */
INLINE range blocks_of(worker self, int64_t count, int64_t block) {
    range blocks = part_of(self, ceil_divide(count, block));
    return (range){blocks.first * block, smaller(count, blocks.last * block)};
}

static working carve(const direction *d, int64_t gates, worker self, meeting_place *place) {
    int64_t width = gates * d->hidden, state = d->batch * d->hidden;
    working w = {.self = self, .place = place, .units = blocks_of(self, d->hidden, WIDE)};
    w.gates = d->workspace;
    w.product = w.gates + d->time * d->batch * width;
    w.hidden = w.product + d->batch * width;
    w.cell = w.hidden + state;
    w.spare = w.cell + state;
    w.bias = w.spare + state;
    w.results = (uint8_t *)(w.bias + width);
    w.rows = w.results + 2 * byte_results_size(width);
    return w;
}

/* Bytes that products of bytes take of the workspace, behind the floats. */
EXPORT int64_t aegis_byte_recurrence_workspace(int64_t time, int64_t batch, int64_t inputs, int64_t hidden,
                                               int64_t width) {
    int64_t rows_bytes = batch * larger(time * padded_byte_depth(inputs), padded_byte_depth(hidden));
    return 2 * byte_results_size(width) + rows_bytes;
}

/* ---- matrix products ------------------------------------------------------------------------
 *
 * With one or two rows a tile of one panel has too few sums to hide the latency of the
 * multiply-add: then several panels run side by side.
 */

enum { NARROW_SUMS = 8 }; /* registers of sums that are added to at the same time */

INLINE void store_panel(const epilogue *end, vec sums[2][VECTORS], float *y, int64_t columns, int64_t column,
                        int rows, int vectors) {
    tile_store(end, sums, rows, vectors, y, columns, 0, column, columns - column);
}

INLINE void narrow_tile(const epilogue *end, const float *a, int64_t depth, const float *panels,
                        int64_t columns, float *y, int64_t column, int rows, int side_by_side) {
    vec sums[4][2][VECTORS];
    UNROLL for (int p = 0; p < side_by_side; p++) tile_clear(sums[p], rows, VECTORS);
    for (int64_t k = 0; k < depth; k++, panels += PANEL)
        UNROLL for (int p = 0; p < side_by_side; p++)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < VECTORS; v++)
                    sums[p][r][v] = multiply_add(vec_of(a[r * depth + k]),
                                                 vec_load(panels + p * depth * PANEL + v * LANES), sums[p][r][v]);
    UNROLL for (int p = 0; p < side_by_side; p++, column += PANEL) {
        int64_t left = smaller(PANEL, columns - column);
        TILE_VECTORS(store_panel, rows, ceil_divide(left, LANES), end, sums[p], y, columns, column)
    }
}

INLINE void narrow_product(const epilogue *end, const float *a, int64_t depth, const float *panels,
                           int64_t columns, range mine, float *y, int rows, int side_by_side) {
    int64_t column = mine.first;
    for (; column + (side_by_side - 1) * PANEL < mine.last; column += side_by_side * PANEL)
        narrow_tile(end, a, depth, panels + column * depth, columns, y, column, rows, side_by_side);
    for (; column < mine.last; column += PANEL)
        narrow_tile(end, a, depth, panels + column * depth, columns, y, column, rows, 1);
}

INLINE void wide_tile(const epilogue *end, const float *a, int64_t depth, const float *panel, int64_t columns,
                      float *y, int64_t row, int64_t column, int rows, int vectors) {
    const float *a_rows[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a_rows[r] = a + (row + r) * depth;
    vec sums[ROWS][VECTORS];
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a_rows, 1, panel, PANEL, depth, panel);
    tile_store(end, sums, rows, vectors, y, columns, row, column, columns - column);
}

enum { BLOCK_FLOATS = 32 << 10 };

/* The worker's columns of y[rows][columns] = a[rows][depth] B + bias; `bias` is [columns] or NULL.
 * Blocks as in gemm.c. */
static void product(worker self, const float *a, int64_t rows, int64_t depth, const float *panels,
                    int64_t columns, const float *bias, float *y) {
    range mine = blocks_of(self, columns, PANEL);
    const epilogue end = {NULL, bias, 0, 1, 1, 1, 0, 0, 0};
    if (rows == 1) {
        narrow_product(&end, a, depth, panels, columns, mine, y, 1, NARROW_SUMS / VECTORS);
        return;
    }
    if (rows == 2) {
        narrow_product(&end, a, depth, panels, columns, mine, y, 2, NARROW_SUMS / VECTORS / 2);
        return;
    }
    int64_t tile = even_tile(rows);
    int64_t block = larger(1, BLOCK_FLOATS / (depth * tile)) * tile;
    for (int64_t first = 0; first < rows; first += block) {
        int64_t last = smaller(first + block, rows);
        for (int64_t column = mine.first; column < mine.last; column += PANEL) {
            const float *panel = panels + column * depth;
            int64_t vectors = ceil_divide(smaller(PANEL, columns - column), LANES);
            for (int64_t row = first; row < last; row += tile)
                TILE_DISPATCH(wide_tile, smaller(tile, last - row), vectors, &end, a, depth, panel, columns, y,
                              row, column)
        }
    }
}

/* ---- products of bytes ---------------------------------------------------------------------- */

static byte_matrix ready_matrix(const working *w, const byte_scales *scales, const int8_t *panels, int64_t depth,
                                int64_t columns) {
    const float scale = 1;
    const uint8_t zero = 1;
    int64_t panels_bytes = padded_byte_depth(depth) * padded_byte_columns(columns);
    const int32_t *column_sums = (const int32_t *)(const void *)(panels + panels_bytes);
    byte_matrix m = {panels, depth, columns, .mine = blocks_of(w->self, columns, BYTE_BLOCK_COLUMNS)};
    int64_t count = m.mine.last - m.mine.first;
    uint8_t *unit = w->results + byte_results_size(m.mine.first);
    m.unit = ready_results(scales, &scale, &zero, column_sums + m.mine.first, depth, m.mine.first, count, unit);
    m.results = results_at(m.unit, unit + byte_results_size(columns), count);
    m.results.zeros = m.unit.zeros;
    return m;
}

static void take_grid(byte_matrix *m, byte_grid grid) {
    for (int64_t c = 0; c < padded_byte_columns(m->mine.last - m->mine.first); c++) {
        m->results.correction[c] = m->unit.correction[c] * grid.zero;
        m->results.factor[c] = m->unit.factor[c] * grid.scale;
    }
}

/* The worker's part of rows of A on their grid, padded. */
static void quantise_part(const working *w, const byte_matrix *m, const float *a, int64_t rows, byte_grid grid) {
    int64_t padded = padded_byte_depth(m->depth);
    range lines = part_of(w->self, padded / BYTE_DEPTH);
    int64_t first = lines.first * BYTE_DEPTH, last = lines.last * BYTE_DEPTH, end = smaller(last, m->depth);
    if (first == last) return;
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *to = w->rows + r * padded;
        quantise_row(a + r * m->depth + first, end - first, grid.scale, range_of_levels(grid.zero, 0, 255), to + first);
        __builtin_memset(to + end, 0, (size_t)(last - end));
    }
}

/* The worker's columns of y[rows][columns] = a[rows][depth] B + bias. All workers see all of A. */
static void product_of_bytes(working *w, byte_matrix *m, const float *a, byte_grid grid, int64_t rows,
                             const float *bias, float *y) {
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64))), row_sums[BYTE_ROWS];
    int64_t padded = padded_byte_depth(m->depth), y_row = m->columns * (int64_t)sizeof(float);
    byte_block block = {.a_row = padded, .depth = m->depth, .padded_depth = padded, .sums = sums};
    quantise_part(w, m, a, rows, grid);
    meet(w);
    if (m->mine.first == m->mine.last) return;
    take_grid(m, grid);
    m->results.addend = bias ? bias + m->mine.first : NULL;
    block.tile_rows = begin_byte_products(rows);
    for (int64_t i = 0; i < byte_block_count(rows); i++) {
        int64_t first = byte_block_start(rows, i);
        block.rows = byte_block_start(rows, i + 1) - first;
        block.a = w->rows + first * padded;
        for (int64_t r = 0; r < block.rows; r++)
            row_sums[r] = m->results.has_zeros ? byte_sum(block.a + r * padded, m->depth) : 0;
        for (int64_t column = m->mine.first; column < m->mine.last; column += BYTE_BLOCK_COLUMNS) {
            int64_t left = m->columns - column;
            block.panels = m->panels + column * padded;
            block.panel_count = left > BYTE_PANEL ? 2 : 1;
            multiply_bytes(&block);
            store_block(&m->results, &block, row_sums, column - m->mine.first, left,
                        (char *)(y + first * m->columns + column), y_row);
        }
    }
    end_byte_products(block.tile_rows);
}

/* ---- gates ---------------------------------------------------------------------------------- */

INLINE wide activated(activation f, wide x) {
    switch (f.kind) {
        case SIGMOID: return wide_sigmoid(x);
        case TANH: return wide_tanh(x);
        case RELU: return wide_at_least(x, wide_of(0));
        case LEAKY_RELU: return wide_select(x < 0.0f, x * f.alpha, x);
        case HARD_SIGMOID: return wide_at_most(wide_at_least(x * f.alpha + f.beta, wide_of(0)), wide_of(1));
        case AFFINE: return x * f.alpha + f.beta;
        case SCALED_TANH: return f.alpha * wide_tanh(x * f.beta);
        case THRESHOLDED_RELU: return wide_select(x <= f.alpha, x * 0.0f, x);
        default: return x / (wide_magnitude(x) + 1.0f);
    }
}

INLINE wide clipped_at(const direction *d, wide x) {
    return wide_at_most(wide_at_least(x, wide_of(-d->clip)), wide_of(d->clip));
}

/* Gate `g` of units i .. i + 15: what came from X and what came from H, which may be NULL. */
INLINE wide gate_sum(const direction *d, const float *from_x, const float *from_h, int64_t g, int64_t i) {
    wide sum = row_load(from_x + g * d->hidden, i, d->hidden);
    return from_h ? sum + row_load(from_h + g * d->hidden, i, d->hidden) : sum;
}

INLINE wide gate(const direction *d, activation f, wide sum) { return activated(f, clipped_at(d, sum)); }

/* i, o, f = f(X W + H R + P C + B); C = f C + i g(...); H = o h(C). */
INLINE void lstm_units(const direction *d, range units, const float *from_x, const float *from_h, float *h, float *c,
                       activation f, activation g, activation squash) {
    const float *p = d->peepholes;
    int64_t n = d->hidden;
    for (int64_t i = units.first; i < units.last; i += WIDE) {
        wide cell = row_load(c, i, n);
        wide admit = gate_sum(d, from_x, from_h, 0, i), emit = gate_sum(d, from_x, from_h, 1, i);
        wide forget = gate_sum(d, from_x, from_h, 2, i);
        wide content = gate(d, g, gate_sum(d, from_x, from_h, 3, i));
        if (p) {
            admit += cell * row_load(p, i, n);
            forget += cell * row_load(p + 2 * n, i, n);
        }
        admit = gate(d, f, admit);
        forget = d->variant ? 1.0f - admit : gate(d, f, forget);
        cell = cell * forget + admit * content;
        if (p) emit += cell * row_load(p + n, i, n);
        row_store(c, i, n, cell);
        row_store(h, i, n, activated(squash, cell) * gate(d, f, emit));
    }
}

static void lstm_sequence(const direction *d, range units, const float *from_x, const float *from_h, float *h, float *c) {
    const activation *a = d->activations;
    const activation sigmoid = {SIGMOID, 0, 0}, tangent = {TANH, 0, 0};
    /* Nearly all models have these three: known to the compiler, they cost no branches. */
    if (a[0].kind == SIGMOID && a[1].kind == TANH && a[2].kind == TANH)
        lstm_units(d, units, from_x, from_h, h, c, sigmoid, tangent, tangent);
    else lstm_units(d, units, from_x, from_h, h, c, a[0], a[1], a[2]);
}

/* z = f(X W + H R + B), and the same for r. Writes what the candidate's R shall meet: r H. */
INLINE void gru_reset(const direction *d, range units, const float *from_x, const float *from_h, const float *h,
                      float *reset) {
    int64_t n = d->hidden;
    for (int64_t i = units.first; i < units.last; i += WIDE)
        row_store(reset, i, n, gate(d, d->activations[0], gate_sum(d, from_x, from_h, 1, i)) * row_load(h, i, n));
}

/* `candidate` is the product with the candidate's R: of r H, or of H if the reset comes after it.
 * H = h + z (H - h), where h = g(X W + [r] candidate). */
INLINE void gru_units(const direction *d, range units, const float *from_x, const float *from_h,
                      const float *candidate, float *h) {
    int64_t n = d->hidden;
    const float *bias = d->variant && d->bias ? d->bias + 5 * n : NULL;
    for (int64_t i = units.first; i < units.last; i += WIDE) {
        wide update = gate(d, d->activations[0], gate_sum(d, from_x, from_h, 0, i));
        wide inner = row_load(candidate, i, n), old = row_load(h, i, n);
        if (bias) inner += row_load(bias, i, n);
        if (d->variant) inner *= gate(d, d->activations[0], gate_sum(d, from_x, from_h, 1, i));
        wide fresh = gate(d, d->activations[1], inner + gate_sum(d, from_x, NULL, 2, i));
        row_store(h, i, n, fresh + (old - fresh) * update);
    }
}

/* ---- a direction ---------------------------------------------------------------------------- */

/* Both biases are added at once, but for the one that GRU adds before it resets. */
static void joined_bias(const direction *d, int64_t gates, int64_t inside, float *to) {
    int64_t width = gates * d->hidden, joined = width - inside * d->hidden;
    if (!d->bias) return;
    for (int64_t i = 0; i < width; i += WIDE) row_store(to, i, width, row_load(d->bias, i, width));
    for (int64_t i = 0; i < joined; i += WIDE)
        row_store(to, i, joined, row_load(to, i, joined) + row_load(d->bias + width, i, joined));
}

static void start_state(const direction *d, const float *initial, float *state) {
    for (int64_t b = 0; b < d->batch; b++, state += d->hidden) {
        if (initial) copy_floats(state, initial + b * d->state_batch, d->hidden);
        else __builtin_memset(state, 0, (size_t)d->hidden * sizeof(float));
    }
}

static void end_state(const direction *d, const float *state, float *result) {
    for (int64_t b = 0; result && b < d->batch; b++)
        copy_floats(result + b * d->state_batch, state + b * d->hidden, d->hidden);
}

INLINE int64_t length_of(const direction *d, int64_t b) {
    return d->lengths ? smaller(d->lengths[b], d->time) : d->time;
}

INLINE int has_ended(const direction *d, int64_t step, int64_t b) { return step >= length_of(d, b); }

/* The time of a sequence's step; each has its own if they are reversed. */
INLINE int64_t time_of(const direction *d, int64_t step, int64_t b) {
    return d->is_reversed && !has_ended(d, step, b) ? length_of(d, b) - 1 - step : step;
}

/* The units' new state of sequence b at a step, or zeros after its end. */
INLINE void write_result(const direction *d, range units, const float *hidden, int64_t step, int64_t b) {
    if (!d->y) return;
    float *y = d->y + time_of(d, step, b) * d->y_time + b * d->y_batch + units.first;
    int64_t count = units.last - units.first;
    if (has_ended(d, step, b)) __builtin_memset(y, 0, (size_t)count * sizeof(float));
    else copy_floats(y, hidden + b * d->hidden + units.first, count);
}

INLINE float *gates_of(const direction *d, const working *w, int64_t gates, int64_t step, int64_t b) {
    return w->gates + (time_of(d, step, b) * d->time_rows + b * d->batch_rows) * gates * d->hidden;
}

static void rnn_step(const direction *d, working *w, int64_t step) {
    int64_t n = d->hidden;
    product(w->self, w->hidden, d->batch, n, d->r, n, NULL, w->product);
    meet(w);
    for (int64_t b = 0; b < d->batch; b++) {
        const float *from_x = gates_of(d, w, 1, step, b);
        for (int64_t i = w->units.first; !has_ended(d, step, b) && i < w->units.last; i += WIDE)
            row_store(w->hidden + b * n, i, n,
                      gate(d, d->activations[0], gate_sum(d, from_x, w->product + b * n, 0, i)));
    }
}

static void gru_step(const direction *d, working *w, int64_t step) {
    int64_t n = d->hidden;
    float *both = w->product, *candidate = w->product + 2 * n * d->batch;
    product(w->self, w->hidden, d->batch, n, d->r, 2 * n, NULL, both);
    if (!d->variant) {
        meet(w);
        for (int64_t b = 0; b < d->batch; b++)
            gru_reset(d, w->units, gates_of(d, w, 3, step, b), both + b * 2 * n, w->hidden + b * n,
                      w->spare + b * n);
        meet(w);
    }
    product(w->self, d->variant ? w->hidden : w->spare, d->batch, n, d->r_last, n, NULL, candidate);
    meet(w);
    for (int64_t b = 0; b < d->batch; b++)
        if (!has_ended(d, step, b))
            gru_units(d, w->units, gates_of(d, w, 3, step, b), both + b * 2 * n, candidate + b * n,
                      w->hidden + b * n);
}

INLINE void lstm_gates(const direction *d, const working *w, int64_t step) {
    int64_t n = d->hidden;
    for (int64_t b = 0; b < d->batch; b++)
        if (!has_ended(d, step, b))
            lstm_sequence(d, w->units, gates_of(d, w, 4, step, b), w->product + b * 4 * n, w->hidden + b * n,
                          w->cell + b * n);
}

static void lstm_step(const direction *d, working *w, int64_t step) {
    product(w->self, w->hidden, d->batch, d->hidden, d->r, 4 * d->hidden, NULL, w->product);
    meet(w);
    lstm_gates(d, w, step);
}

/* Of the states that a step meets, but for what has long ended. */
static byte_grid grid_of_states(const direction *d, const float *a, int64_t step) {
    float_range all = {0, 0};
    for (int64_t b = 0; b < d->batch; b++)
        if (!has_ended(d, step - 1, b)) all = joined_ranges(all, range_with_zero(a + b * d->hidden, d->hidden));
    return grid_over(all);
}

/* Of X, until the longest sequence has ended. */
static byte_grid grid_of_inputs(const direction *d) {
    int64_t longest = 0;
    for (int64_t b = 0; b < d->batch; b++) longest = larger(longest, length_of(d, b));
    return grid_of(d->x, (d->batch_rows == 1 ? longest : d->time) * d->batch * d->inputs);
}

static void lstm_of_bytes_step(const direction *d, working *w, int64_t step) {
    byte_grid grid = grid_of_states(d, w->hidden, step);
    product_of_bytes(w, &w->recurrence, w->hidden, grid, d->batch, NULL, w->product);
    meet(w);
    lstm_gates(d, w, step);
}

/* X W + bias for all times; what R needs is made ready in W's place. */
INLINE void multiply_inputs(const direction *d, working *w, int64_t width, const float *bias, int is_bytes) {
    int64_t rows = d->time * d->batch;
    if (!is_bytes) {
        product(w->self, d->x, rows, d->inputs, d->w, width, bias, w->gates);
        return;
    }
    byte_matrix weights = ready_matrix(w, &d->w_scales, d->w, d->inputs, width);
    product_of_bytes(w, &weights, d->x, grid_of_inputs(d), rows, bias, w->gates);
    w->recurrence = ready_matrix(w, &d->r_scales, d->r, d->hidden, width);
}

/* `inside` gates at the end take the bias of R themselves. The first worker does what is little. */
INLINE void run_direction(const direction *d, worker self, meeting_place *place, int64_t gates, int64_t inside,
                          int is_bytes, void (*take_step)(const direction *, working *, int64_t)) {
    working w = carve(d, gates, self, place);
    if (self.index == 0) {
        joined_bias(d, gates, inside, w.bias);
        start_state(d, d->initial_h, w.hidden);
        start_state(d, d->initial_c, w.cell);
    }
    meet(&w);
    multiply_inputs(d, &w, gates * d->hidden, d->bias ? w.bias : NULL, is_bytes);
    meet(&w);
    for (int64_t i = 0; i < d->time; i++) {
        take_step(d, &w, i);
        for (int64_t b = 0; b < d->batch; b++) write_result(d, w.units, w.hidden, i, b);
        meet(&w);
    }
    if (self.index == 0) {
        end_state(d, w.hidden, d->y_h);
        end_state(d, w.cell, d->y_c);
    }
}

INLINE void run_directions(const recurrence *r, worker self, int64_t gates, int is_bytes,
                           void (*take_step)(const direction *, working *, int64_t)) {
    for (int64_t i = 0; i < r->count; i++) {
        const direction *d = &r->directions[i];
        int64_t inside = gates == 3 && d->variant;
        run_direction(d, self, r->place, gates, inside, is_bytes, take_step);
    }
}

SHARED_KERNEL(aegis_rnn, recurrence) { run_directions(arguments, self, 1, 0, rnn_step); }

SHARED_KERNEL(aegis_gru, recurrence) { run_directions(arguments, self, 3, 0, gru_step); }

SHARED_KERNEL(aegis_lstm, recurrence) { run_directions(arguments, self, 4, 0, lstm_step); }

SHARED_KERNEL(aegis_lstm_of_bytes, recurrence) { run_directions(arguments, self, 4, 1, lstm_of_bytes_step); }
