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
    } catch (const std::bad_alloc &) {  // those that run are to be joined
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

// What the members of a team share: the number of the list that they are at, and in its lower half of the next task.
struct TeamState {
    std::atomic<uint64_t> next{0};
    std::atomic<int64_t> done{0};
};

// One of some threads that do one list of tasks after another together: each calls `share` with the same lists. Nobody
// waits for a member that has no task, such as one that the system has not let run yet.
class TeamMember {
  public:
    explicit TeamMember(TeamState &state) : state_(state) {}

    // Calls work(0) to work(count - 1), of which other members take some, and returns when all have returned. `work`
    // must not throw: the others would wait for it.
    template <typename Work>
    void share(int64_t count, Work work) {
        if (count == 0) return;
        const uint64_t first = list_, tasks = static_cast<uint64_t>(count);
        list_ += kList;
        uint64_t next = state_.next.load();
        while (next - first < tasks) {  // later lists are further away
            if (!state_.next.compare_exchange_weak(next, next + 1)) continue;
            work(static_cast<int64_t>(next - first));
            if (state_.done.fetch_add(1) + 1 == count) {
                state_.done = 0;
                state_.next = list_;
                return;
            }
            next = state_.next.load();
        }
        // The others' tasks end within microseconds, unless the system has given a core to another process.
        for (int64_t turn = 0; state_.next.load() < list_; ++turn) {
            if (turn > kSpins) std::this_thread::yield();
        }
    }

  private:
    static constexpr uint64_t kList = uint64_t{1} << 32;
    static constexpr int64_t kSpins = 10000;
    TeamState &state_;
    uint64_t list_ = 0;
};

// Calls work(member, 0) to work(member, size - 1), each in a thread of its own, as `run_in_threads` does.
template <typename Work>
void run_in_team(int64_t size, Work work) {
    TeamState state;
    run_in_threads(size, [&](int64_t number) { work(TeamMember(state), number); });
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
