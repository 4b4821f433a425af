/* Runs bound steps one after the other, and says which instruction set the machine has. */
#include "team.h"

#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Runs `count` steps in order; one without a function does nothing. With `stamps`
 * (int64[count][2]) it also writes when each one began and ended, in nanoseconds of
 * CLOCK_MONOTONIC; one ends where the next begins. One that refuses its operands is the last. The calling thread's team helps from the first
 * step on that can be shared. */
EXPORT void aegis_run(const step *steps, int64_t count, int64_t *stamps) {
    team *t = own_team();
    int64_t now = stamps ? now_ns() : 0, i = 0;
    for (; i < count && !(t && steps[i].shares); i++) {
        if (stamps) stamps[2 * i] = now;
        if (steps[i].function) steps[i].function(steps[i].arguments, (worker){0, 1, 0});
        if (stamps) stamps[2 * i + 1] = now = now_ns();
        if (has_refused(&steps[i])) return;
    }
    if (i == count) return;
    run_together(t, steps + i, count - i, stamps ? stamps + 2 * i : NULL);
}

/* The x86-64 level (2, 3 or 4) that processor and operating system support together; 0 elsewhere.
 * Levels as in the x86-64 psABI; the registers' state must be saved by the system (XCR0). */
EXPORT int64_t aegis_isa_level(void) {
#if defined(__x86_64__)
    unsigned a, b, c, d, saved, upper;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 2;
    const unsigned osxsave_avx_fma_movbe_f16c = 1u << 27 | 1u << 28 | 1u << 12 | 1u << 22 | 1u << 29;
    if ((c & osxsave_avx_fma_movbe_f16c) != osxsave_avx_fma_movbe_f16c) return 2;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if ((saved & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 2;
    const unsigned bmi1_avx2_bmi2 = 1u << 3 | 1u << 5 | 1u << 8;
    unsigned extended = 0;
    __get_cpuid(0x80000001, &a, &upper, &extended, &d);
    if ((b & bmi1_avx2_bmi2) != bmi1_avx2_bmi2 || !(extended & 1u << 5)) return 2;
    const unsigned avx512_f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    const unsigned zmm_state = 0xe6;
    return (b & avx512_f_dq_cd_bw_vl) == avx512_f_dq_cd_bw_vl && (saved & zmm_state) == zmm_state ? 4 : 3;
#else
    return 0;
#endif
}
