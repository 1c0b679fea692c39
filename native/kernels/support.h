// What every call of the C interface needs: aligned memory, threads, and a status for what went wrong.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "patchcaption/common.h"

namespace patchcaption {

constexpr int64_t kAlignment = 64;

struct FreeDeleter {
    void operator()(void *memory) const { std::free(memory); }
};
template <typename Item>
using AlignedArray = std::unique_ptr<Item[], FreeDeleter>;

// The product of numbers that are at least 0. Where it has no int64_t, no memory has so many bytes.
inline int64_t multiply(int64_t a, int64_t b) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) throw std::bad_alloc();
    return product;
}

template <typename Item>
AlignedArray<Item> allocate(int64_t count) {
    const int64_t bytes = multiply(multiply(count, sizeof(Item)) / kAlignment + 1, kAlignment);
    void *memory = std::aligned_alloc(kAlignment, bytes);
    if (!memory) throw std::bad_alloc();
    return AlignedArray<Item>(static_cast<Item *>(memory));
}

template <typename Item>
AlignedArray<Item> allocate_zeroed(int64_t count) {
    AlignedArray<Item> items = allocate<Item>(count);
    std::memset(items.get(), 0, sizeof(Item) * count);
    return items;
}

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// As many threads as the caller of the library allows; 0 or less stands for one per hardware thread.
inline int64_t max_threads(int32_t threads) {
    return threads > 0 ? threads : static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
}

// Calls work(0) to work(count - 1), each in a thread of its own, work(0) in the caller's. `work` must take its tasks
// from a shared counter: if the system refuses a thread, the others then complete them all.
template <typename Work>
void run_in_threads(int64_t count, Work work) {
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> failures(count);
    const auto run = [&](int64_t thread) {
        try {
            work(thread);
        } catch (...) {
            failures[thread] = std::current_exception();
        }
    };
    threads.reserve(count);
    try {
        for (int64_t thread = 1; thread < count; ++thread) threads.emplace_back(run, thread);
    } catch (const std::system_error &) {
    }
    run(0);
    for (std::thread &thread : threads) thread.join();
    for (const std::exception_ptr &failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

// Calls work(task, scratch) for each of some tasks, in threads with scratch memory of their own.
template <typename Work>
void distribute(int64_t tasks, int64_t threads, int64_t scratch_bytes, Work work) {
    std::atomic<int64_t> next{0};
    run_in_threads(std::min(threads, tasks), [&](int64_t) {
        const AlignedArray<char> scratch = allocate<char>(scratch_bytes);
        for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, scratch.get());
    });
}

// Threads that do one list of tasks after another together: each calls `share` with the same lists.
class Team {
  public:
    // To be called once, when as many threads as it has were started.
    void begin(int64_t size) { size_ = size; }

    void await_beginning() const {
        while (size_.load() == 0) std::this_thread::yield();
    }

    // Calls work(0) to work(count - 1), and returns when all members' have returned.
    template <typename Work>
    void share(int64_t count, Work work) {
        for (int64_t task; (task = next_.fetch_add(1)) < count;) work(task);
        meet();
    }

  private:
    void meet() {
        const int64_t meeting = meetings_.load();
        if (arrived_.fetch_add(1) + 1 == size_) {
            next_ = 0;
            arrived_ = 0;
            meetings_ = meeting + 1;
            return;
        }
        // They meet within microseconds, unless the system has given a core to another process.
        for (int64_t turn = 0; meetings_.load() == meeting; ++turn) {
            if (turn > kSpins) std::this_thread::yield();
        }
    }

    static constexpr int64_t kSpins = 10000;
    std::atomic<int64_t> size_{0}, next_{0}, arrived_{0}, meetings_{0};
};

// Calls work(team, 0) to work(team, size - 1), each in a thread of its own, work(team, 0) in the caller's, or fewer
// where the system refuses a thread. `work` must not throw: the others would wait for it.
template <typename Work>
void run_in_team(int64_t size, Work work) {
    Team team;
    std::vector<std::thread> threads;
    threads.reserve(size);
    const auto join = [&](int64_t number) {
        team.await_beginning();
        work(team, number);
    };
    try {
        for (int64_t number = 1; number < size; ++number) threads.emplace_back(join, number);
    } catch (const std::system_error &) {
    } catch (const std::bad_alloc &) {
    }
    team.begin(static_cast<int64_t>(threads.size()) + 1);
    work(team, int64_t{0});
    for (std::thread &thread : threads) thread.join();
}

// The status of a call's work: no exception may leave the library. Those that are not std::bad_alloc come from reading
// a bank's file.
template <typename Work>
int32_t status_of(Work work) {
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return PATCHCAPTION_OUT_OF_MEMORY;
    } catch (...) {
        return PATCHCAPTION_UNREADABLE_FILE;
    }
}

}  // namespace patchcaption
