/* A step: a kernel bound to its operands. It takes nothing at run time and allocates nothing. */
#ifndef AEGIS_STEP_H
#define AEGIS_STEP_H

#include "vector.h"

typedef void (*kernel_function)(const void *arguments);

typedef struct {
    kernel_function function;
    const void *arguments;
} step;

/* Names a kernel's entry point and tells the size of its arguments, which the binding checks. */
#define KERNEL(name, arguments_type)                                        \
    EXPORT const int64_t name##_arguments_bytes = sizeof(arguments_type);   \
    EXPORT void name(const void *arguments)

#endif
