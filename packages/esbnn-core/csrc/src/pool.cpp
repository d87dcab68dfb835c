#include "pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace esbnn {
namespace {

// A worker that finds nothing looks on for this long before it sleeps: the next layer of a network comes within it, and waking a
// sleeping thread takes longer than a small layer does.
constexpr std::chrono::microseconds kPatience(50);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

struct Job {
    void (*work)(void*, std::int64_t, int);
    void* context;
    std::int64_t chunks;
    int slots;                                   // threads that may still join; the pool's mutex guards it
    int next_slot = 1;                           // guarded too; 0 is the caller's
    std::atomic<std::int64_t> next{0};
    std::atomic<int> inside{0};                  // workers in it; rises under the mutex only
    Job* after = nullptr;

    void run(int slot) {
        for (;;) {
            const std::int64_t chunk = next.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= chunks) return;
            work(context, chunk, slot);
        }
    }
};

class Pool {
public:
    explicit Pool(pid_t pid) : pid_(pid) {}
    pid_t pid() const { return pid_; }

    void run(Job& job, int helpers) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            grow(helpers);
            job.after = first_;
            first_ = &job;
            posted_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        job.run(0);
        // Out of the list, so that nobody joins any more; who is inside finishes its chunk.
        std::unique_lock<std::mutex> lock(mutex_);
        Job** link = &first_;
        while (*link != &job) link = &(*link)->after;
        *link = job.after;
        if (job.inside.load(std::memory_order_acquire) == 0) return;
        lock.unlock();
        const auto until = std::chrono::steady_clock::now() + kPatience;
        while (job.inside.load(std::memory_order_acquire) != 0 && std::chrono::steady_clock::now() < until) pause();
        // The lock also makes sure that the last worker is done with the job before it goes out of scope.
        lock.lock();
        done_.wait(lock, [&] { return job.inside.load(std::memory_order_acquire) == 0; });
    }

private:
    void grow(int helpers) {
        while (workers_ < helpers) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;                          // fewer threads: slower, nothing else
            }
            ++workers_;
        }
    }

    // The mutex is held.
    Job* find() {
        for (Job* job = first_; job != nullptr; job = job->after)
            if (job->slots > 0 && job->next.load(std::memory_order_relaxed) < job->chunks) return job;
        return nullptr;
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = find();
            if (job == nullptr) {
                const std::uint64_t seen = posted_.load(std::memory_order_acquire);
                lock.unlock();
                const auto until = std::chrono::steady_clock::now() + kPatience;
                bool posted = false;
                while (!posted && std::chrono::steady_clock::now() < until) {
                    pause();
                    posted = posted_.load(std::memory_order_acquire) != seen;
                }
                lock.lock();
                if (!posted) wake_.wait(lock, [&] { return posted_.load(std::memory_order_acquire) != seen; });
                continue;
            }
            --job->slots;
            const int slot = job->next_slot++;
            job->inside.fetch_add(1, std::memory_order_relaxed);
            lock.unlock();
            job->run(slot);
            lock.lock();
            if (job->inside.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
        }
    }

    const pid_t pid_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::atomic<std::uint64_t> posted_{0};
    Job* first_ = nullptr;
    int workers_ = 0;
};

// Never destroyed: its threads may be asleep in it when the process ends.
std::atomic<Pool*> current{nullptr};

Pool* pool() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    (void)registered;
    const pid_t pid = getpid();                  // handlers of fork do not run after a bare clone
    Pool* found = current.load(std::memory_order_acquire);
    while (found == nullptr || found->pid() != pid) {
        Pool* made = new (std::nothrow) Pool(pid);
        if (made == nullptr) return nullptr;
        if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return made;
        delete made;
    }
    return found;
}

}  // namespace

void parallel(std::int64_t threads, std::int64_t chunks, void (*work)(void*, std::int64_t, int), void* context) {
    const int helpers = static_cast<int>(std::min<std::int64_t>({threads, chunks, kMaxThreads})) - 1;
    Pool* shared = helpers > 0 ? pool() : nullptr;
    if (shared == nullptr) {
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) work(context, chunk, 0);
        return;
    }
    Job job{work, context, chunks, helpers};
    shared->run(job, helpers);
}

}  // namespace esbnn
