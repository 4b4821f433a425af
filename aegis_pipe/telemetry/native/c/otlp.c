/* OTLP's protobuf from a tape of words, without the interpreter. `otlp_tape.py` writes the tape;
   `otlp_proto.py` makes the same bytes by itself, and says where the numbers of fields are from.

   A word that begins something has what it is in bits 0 to 3, and points into `constants`: a length
   in bits 4 to 31 and an offset in bits 32 to 63. Words that are plain numbers follow it. */

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    CONSTANT, /* bytes as they are */
    INT,      /* tag and key of an attribute; value */
    INTS,     /* tag and key; count, values */
    DOUBLES,  /* tag and key; count, bits of the values */
    SPAN,     /* name; trace id (upper, lower half), id, parent's id or 0, start, end; until END */
    EVENT,    /* name; time; until END */
    END,
    BLOCK, /* (no bytes); template's image, its size, its holes, calls, trace id (two halves),
              parent's id, first id, times */
};
enum { HOLES = 5, DURATION_BYTES = 5, DEPTH_MAX = 2, VARINT_MAX = 10 };

static const uint64_t ID_STEP = 0x9E3779B97F4A7C15u; /* of `ids.py` */

static uint8_t *put_varint(uint8_t *at, uint64_t value) {
    for (; value >= 0x80; value >>= 7) *at++ = (uint8_t)(value | 0x80);
    *at++ = (uint8_t)value;
    return at;
}

static uint64_t varint_size(uint64_t value) {
    uint64_t size = 1;
    while (value >>= 7) size++;
    return size;
}

static uint8_t *put_bytes(uint8_t *at, const void *bytes, uint64_t size) {
    memcpy(at, bytes, size);
    return at + size;
}

static uint8_t *put_little(uint8_t *at, uint64_t value) {
    for (int i = 0; i < 8; i++) *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static uint8_t *put_big(uint8_t *at, uint64_t value) {
    for (int i = 7; i >= 0; i--) *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static uint8_t *put_time(uint8_t *at, uint8_t tag, uint64_t value) {
    *at++ = tag;
    return put_little(at, value);
}

/* The attribute of which `value_size` bytes of an AnyValue come next. */
static uint8_t *put_attribute_head(uint8_t *at, const uint8_t *name, uint64_t size,
                                   uint64_t value_size) {
    *at++ = name[0];
    at = put_varint(at, size - 1 + 1 + varint_size(value_size) + value_size);
    at = put_bytes(at, name + 1, size - 1);
    *at++ = 0x12;
    return put_varint(at, value_size);
}

static uint8_t *put_array(uint8_t *at, const uint8_t *name, uint64_t size, const uint64_t *values,
                          uint64_t count, int are_doubles) {
    uint64_t items = 11 * count;
    if (!are_doubles) {
        items = 3 * count;
        for (uint64_t i = 0; i < count; i++) items += varint_size(values[i]);
    }
    at = put_attribute_head(at, name, size, 1 + varint_size(items) + items);
    *at++ = 0x2a;
    at = put_varint(at, items);
    for (uint64_t i = 0; i < count; i++) {
        *at++ = 0x0a;
        if (are_doubles) {
            *at++ = 9;
            at = put_time(at, 0x21, values[i]);
        } else {
            at = put_varint(at, 1 + varint_size(values[i]));
            *at++ = 0x18;
            at = put_varint(at, values[i]);
        }
    }
    return at;
}

/* Close what began at `body`, before which one byte was left for its length. */
static uint8_t *put_length(uint8_t *body, uint8_t *at) {
    uint64_t size = (uint64_t)(at - body), extra = varint_size(size) - 1;
    memmove(body + extra, body, size);
    put_varint(body - 1, size);
    return at + extra;
}

static uint8_t *put_ids(uint8_t *at, const uint64_t *words) {
    at = put_bytes(at, "\x0a\x10", 2);
    at = put_big(put_big(at, words[0]), words[1]);
    at = put_big(put_bytes(at, "\x12\x08", 2), words[2]);
    return words[3] ? put_big(put_bytes(at, "\x22\x08", 2), words[3]) : at;
}

/* The kernels of a segment: their bytes with the holes filled. Returns whether all durations fit. */
static int fill(uint8_t *at, const uint64_t *words) {
    const int32_t *holes = (const int32_t *)(uintptr_t)words[2];
    uint64_t calls = words[3], span_id = words[7];
    const int64_t *starts = (const int64_t *)(uintptr_t)words[8];
    const int64_t *ends = starts + calls, *durations = ends + calls;
    memcpy(at, (const void *)(uintptr_t)words[0], words[1]);
    for (uint64_t i = 0; i < calls; i++, holes += HOLES, span_id += ID_STEP) {
        put_big(put_big(at + holes[0], words[4]), words[5]);
        put_big(at + holes[1], span_id ? span_id : 1);
        put_big(at + holes[2], words[6]);
        put_little(at + holes[3], (uint64_t)starts[i]);
        put_little(at + holes[3] + 9, (uint64_t)ends[i]);
        uint64_t duration = (uint64_t)durations[i];
        if (duration >> 7 * DURATION_BYTES) return 0;
        uint8_t *place = at + holes[4];
        for (int byte = 0; byte < DURATION_BYTES; byte++, duration >>= 7)
            place[byte] = (uint8_t)((duration & 0x7F) | (byte + 1 < DURATION_BYTES ? 0x80 : 0));
    }
    return 1;
}

/* Write `count` words of a tape as protobuf to `out`. Returns how many bytes that are; -1 if there
   is no room; -2 if a kernel took longer than a template has room for. */
EXPORT int64_t aegis_encode_otlp(const uint64_t *tape, int64_t count, const uint8_t *constants,
                                 uint8_t *out, int64_t room) {
    const uint64_t *end = tape + count;
    uint8_t *at = out, *bodies[DEPTH_MAX];
    int depth = 0;
    while (tape < end) {
        uint64_t word = *tape++, size = word >> 4 & 0xFFFFFFF, items = 0, needed;
        const uint8_t *bytes = constants + (word >> 32);
        int kind = (int)(word & 15);
        if (kind == INTS || kind == DOUBLES) items = *tape++;
        /* An array's item takes a varint and three bytes at most; all else fits in the rest. */
        needed = (kind == BLOCK ? tape[1] : size) + items * (VARINT_MAX + 3) + 128;
        if ((uint64_t)(out + room - at) < needed) return -1;
        switch (kind) {
        case CONSTANT: at = put_bytes(at, bytes, size); break;
        case INT:
            at = put_attribute_head(at, bytes, size, 1 + varint_size(*tape));
            *at++ = 0x18;
            at = put_varint(at, *tape++);
            break;
        case INTS:
        case DOUBLES:
            at = put_array(at, bytes, size, tape, items, kind == DOUBLES);
            tape += items;
            break;
        case SPAN:
            *at++ = 0x12;
            bodies[depth++] = ++at;
            at = put_bytes(put_ids(at, tape), bytes, size);
            at = put_bytes(at, "\x30\x01", 2);
            at = put_time(put_time(at, 0x39, tape[4]), 0x41, tape[5]);
            tape += 6;
            break;
        case EVENT:
            *at++ = 0x5a;
            bodies[depth++] = ++at;
            at = put_bytes(put_time(at, 0x09, *tape++), bytes, size);
            break;
        case END: at = put_length(bodies[--depth], at); break;
        case BLOCK:
            if (!fill(at, tape)) return -2;
            at += tape[1];
            tape += 9;
            break;
        }
    }
    return at - out;
}
