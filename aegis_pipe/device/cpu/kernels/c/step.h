/* A step: a kernel bound to its operands. It takes nothing at run time and allocates nothing. */
#ifndef AEGIS_STEP_H
#define AEGIS_STEP_H

#include "vector.h"

/* Which part of a step's work to do, and which of a team's threads does it, in a workspace of its own;
 * alone it is {0, 1, 0}. */
typedef struct { int64_t index, count, thread; } worker;

typedef void (*kernel_function)(const void *arguments, worker self);

typedef struct {
    kernel_function function;
    const void *arguments;
    int64_t shares; /* into how many parts a thread a team cuts it; 0: its owner does all of it */
    const int64_t *refused; /* [refusals]: what the kernel found wrong with its operands, 0 for nothing */
    int64_t refusals;
} step;

/* Then the steps behind it are not run: what it wrote means nothing. */
INLINE int has_refused(const step *s) {
    for (int64_t i = 0; i < s->refusals; i++)
        if (s->refused[i]) return 1;
    return 0;
}

typedef struct { int64_t first, last; } range;

/* A worker's part of `count` units: what it is depends on the number of parts, never on the clock. */
INLINE range part_of(worker self, int64_t count) {
    return (range){count * self.index / self.count, count * (self.index + 1) / self.count};
}

/* What a thread does while it waits for another one. */
INLINE void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Names a kernel's entry point and tells the size of its arguments, which the binding checks, and
 * whether its work can be shared. In the kernel `self` says which part to do. A result must not
 * depend on the parts: each is computed as a whole, by one worker. */
#define SHARED_KERNEL(name, arguments_type)                                \
    EXPORT const int64_t name##_arguments_bytes = sizeof(arguments_type);   \
    EXPORT const int64_t name##_shares = 1;                                 \
    EXPORT void name(const void *arguments, worker self)

/* A kernel that one thread runs. */
#define KERNEL(name, arguments_type)                                        \
    EXPORT const int64_t name##_arguments_bytes = sizeof(arguments_type);   \
    EXPORT const int64_t name##_shares = 0;                                 \
    static void name##_alone(const void *arguments);                        \
    EXPORT void name(const void *arguments, worker self) {                  \
        (void)self;                                                         \
        name##_alone(arguments);                                            \
    }                                                                       \
    static void name##_alone(const void *arguments)

#endif
