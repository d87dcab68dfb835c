// Failures inside the library: thrown as `Error`, turned into a status and a thread's text where the C interface ends.
#pragma once

#include <cstdarg>

#include "esbnn.h"

namespace esbnn {

struct Error {
    int status;
    char text[400];
};

[[noreturn]] void fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));

void set_error_text(const char* text) noexcept;
const char* error_text() noexcept;

}  // namespace esbnn
