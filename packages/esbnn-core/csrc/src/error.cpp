#include "error.h"

#include <cstdio>
#include <cstring>

namespace esbnn {
namespace {

thread_local char last_text[sizeof(Error::text)] = "";

}  // namespace

void fail(int status, const char* format, ...) {
    Error error{status, ""};
    std::va_list values;
    va_start(values, format);
    std::vsnprintf(error.text, sizeof(error.text), format, values);
    va_end(values);
    throw error;
}

void set_error_text(const char* text) noexcept {
    std::strncpy(last_text, text, sizeof(last_text) - 1);
    last_text[sizeof(last_text) - 1] = '\0';
}

const char* error_text() noexcept { return last_text; }

}  // namespace esbnn
