/* A digest of many bytes in one pass as fast as memory: whether two weights are the same.

   Eight lanes of 64 bits take a block of 64 bytes each step, as in XXH3 (Collet 2019): a word, mixed with a
   key that differs from step to step, adds the product of its halves to its lane and itself to the
   neighbour's; after every stripe of 16 blocks the lanes are stirred. Accidents are as unlikely as
   with any digest of 128 bits. It is not made to withstand intent: who relies on it compares. */

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { LANES = 8, BLOCK_BYTES = 64, STRIPE_BLOCKS = 16 };

typedef uint64_t lanes __attribute__((vector_size(BLOCK_BYTES)));

/* Successive values of splitmix64 (Steele et al. 2014). */
static uint64_t next_key(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static lanes take(lanes sums, lanes words, lanes keys) {
    lanes mixed = words ^ keys;
    return sums + (mixed & 0xFFFFFFFFu) * (mixed >> 32) +
           __builtin_shufflevector(words, words, 1, 0, 3, 2, 5, 4, 7, 6);
}

static uint64_t folded(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

EXPORT void aegis_digest(const uint8_t *data, int64_t size, uint64_t digest[2]) {
    uint64_t state = 0;
    lanes keys[STRIPE_BLOCKS], stirring, sums, words;
    for (int lane = 0; lane < LANES; lane++) {
        for (int block = 0; block < STRIPE_BLOCKS; block++) keys[block][lane] = next_key(&state);
        stirring[lane] = next_key(&state), sums[lane] = next_key(&state);
    }
    int64_t blocks = size / BLOCK_BYTES, rest = size % BLOCK_BYTES;
    for (int64_t block = 0; block < blocks; block++) {
        memcpy(&words, data + block * BLOCK_BYTES, sizeof words);
        sums = take(sums, words, keys[block % STRIPE_BLOCKS]);
        if (block % STRIPE_BLOCKS == STRIPE_BLOCKS - 1)
            sums = (sums ^ (sums >> 47) ^ stirring) * 0x9E3779B1u;
    }
    words = (lanes){};
    memcpy(&words, data + blocks * BLOCK_BYTES, (size_t)rest);
    /* A key of its own, so that zeros at the end of the data count. */
    sums = take((sums ^ (sums >> 47)) * 0x9E3779B1u, words, stirring);
    for (int half = 0; half < 2; half++) {
        uint64_t sum = (uint64_t)size * next_key(&state);
        for (int lane = 0; lane < LANES; lane += 2)
            sum += folded(sums[lane] ^ next_key(&state), sums[lane + 1] ^ next_key(&state));
        sum = (sum ^ (sum >> 37)) * 0x165667919E3779F9u;
        digest[half] = sum ^ (sum >> 32);
    }
}
