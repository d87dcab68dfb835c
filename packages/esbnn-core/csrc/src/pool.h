// Threads that share a caller's work. There is no thread count here: every call says how many may take part.
#pragma once

#include <cstdint>

namespace esbnn {

constexpr int kMaxThreads = 256;

// Runs work(context, chunk, slot) for every chunk of [0, chunks), on this thread and up to threads-1 others. slot is in [0, threads)
// and is held by one thread at a time. Chunks are claimed one by one, so a thread that starts late, or never, costs nothing. Returns
// when all have run. work must not throw.
void parallel(std::int64_t threads, std::int64_t chunks, void (*work)(void*, std::int64_t, int), void* context);

}  // namespace esbnn
