// The projection: rows shared out to threads, their softmaxes joined, the best rows computed again with all that is
// known of them.

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "scan_interface.h"

namespace patchcaption {
namespace {

constexpr const Variant *kVariants[] = {
#if defined(__x86_64__)
    &kAmx,
    &kAvx512,
    &kAvx2,
#endif
    &kBaseline,
};
constexpr int64_t kRowsPerShare = 1 << 14;  // threads take the rows in shares of that, as they become free
constexpr std::size_t kAlignment = 64;

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};
template <typename Item>
using Array = std::unique_ptr<Item[], Free>;

template <typename Item>
Array<Item> zeros(int64_t count) {
    const std::size_t bytes = (sizeof(Item) * static_cast<std::size_t>(count) / kAlignment + 1) * kAlignment;
    void *memory = std::aligned_alloc(kAlignment, bytes);
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return Array<Item>(static_cast<Item *>(memory));
}

int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

bool by_logit(const Candidate &a, const Candidate &b) { return a.logit > b.logit; }

// Keeps the better half of a region's candidates.
void prune(Partial &partial, int64_t region) {
    Candidate *mine = partial.candidates + region * partial.capacity;
    const int64_t kept = partial.capacity / 2;
    std::nth_element(mine, mine + kept - 1, mine + partial.counts[region], by_logit);
    partial.counts[region] = kept;
    partial.floors[region] = mine[kept - 1].logit;
}

// `fine` of a block: not wanted, from memory, or from a file, of which a part is mapped while its rows are worked on.
class FineReader : public FineRows {
  public:
    FineReader(const patchcaption_bank &bank, bool is_wanted) : bank_(bank), is_wanted_(is_wanted) {
        struct stat file;
        if (!is_wanted || bank.fine) return;
        const int64_t end = bank.fine_offset + bank.row_count * bank.width;
        if (fstat(bank.fine_file, &file) != 0 || file.st_size < end) throw std::runtime_error("`fine` is cut off");
    }
    FineReader(const FineReader &) = delete;
    FineReader(FineReader &&other) noexcept : bank_(other.bank_), is_wanted_(other.is_wanted_) {}  // before it is used
    ~FineReader() { unmap(); }

    const int8_t *block(int64_t start, int64_t rows) override {
        if (!is_wanted_) return nullptr;
        if (bank_.fine) return bank_.fine + start * bank_.width;
        if (start < first_ || start + rows > last_) map(start);
        return mapped_ + mapped_offset_ + (start - first_) * bank_.width;
    }

    void read_row(int64_t row, int8_t *to) const {
        if (bank_.fine) {
            std::memcpy(to, bank_.fine + row * bank_.width, bank_.width);
        } else if (pread(bank_.fine_file, to, bank_.width, bank_.fine_offset + row * bank_.width) != bank_.width) {
            throw std::runtime_error("`fine` cannot be read");
        }
    }

  private:
    void map(int64_t start) {
        unmap();
        first_ = start;
        last_ = std::min(bank_.row_count, start + kRowsPerShare);
        const int64_t from = bank_.fine_offset + first_ * bank_.width, page = sysconf(_SC_PAGESIZE);
        mapped_offset_ = from % page;
        mapped_bytes_ = mapped_offset_ + (last_ - first_) * bank_.width;
        void *memory =
            mmap(nullptr, mapped_bytes_, PROT_READ, MAP_SHARED | MAP_POPULATE, bank_.fine_file, from - mapped_offset_);
        if (memory == MAP_FAILED) {
            mapped_bytes_ = 0;
            throw std::runtime_error("`fine` cannot be mapped");
        }
        mapped_ = static_cast<int8_t *>(memory);
    }

    void unmap() {
        if (mapped_bytes_) munmap(mapped_, mapped_bytes_);
        mapped_bytes_ = 0;
    }

    const patchcaption_bank &bank_;
    bool is_wanted_;
    int8_t *mapped_ = nullptr;
    int64_t mapped_bytes_ = 0, mapped_offset_ = 0, first_ = 0, last_ = 0;
};

// A Partial and the memory it points to, and what else a thread works with.
class Worker {
  public:
    Worker(const Variant &variant, const patchcaption_bank &bank, const Query &query, int64_t best)
        : fine(bank, query.with_fine),
          floats_(zeros<float>(query.padded_regions * (4 + query.padded_width))),
          candidates_(zeros<Candidate>(2 * best * query.regions)),
          counts_(zeros<int64_t>(query.regions)),
          scratch_(zeros<char>(variant.scratch_bytes(bank, query))) {
        float *place = floats_.get();
        partial.mixed = place;
        place += query.padded_regions * query.padded_width;
        for (float **one : {&partial.largest, &partial.total, &partial.reach, &partial.floors}) {
            *one = place;
            place += query.padded_regions;
        }
        std::fill_n(partial.largest, query.padded_regions, -INFINITY);
        std::fill_n(partial.floors, query.padded_regions, -INFINITY);
        partial.candidates = candidates_.get();
        partial.counts = counts_.get();
        partial.capacity = 2 * best;
        partial.prune = prune;
    }

    void *scratch() { return scratch_.get(); }

    FineReader fine;
    Partial partial;

  private:
    Array<float> floats_;
    Array<Candidate> candidates_;
    Array<int64_t> counts_;
    Array<char> scratch_;
};

// Calls work(number) for numbers from 0 on, below count, each in a thread of its own; the caller's is the first. There
// may be fewer threads than asked for: the work is such that those that come do all of it.
template <typename Work>
void in_threads(int64_t count, Work work) {
    std::vector<std::thread> others;
    std::vector<std::exception_ptr> failures(count);
    const auto caught = [&](int64_t number) {
        try {
            work(number);
        } catch (...) {
            failures[number] = std::current_exception();
        }
    };
    others.reserve(count);
    try {
        for (int64_t number = 1; number < count; ++number) others.emplace_back(caught, number);
    } catch (const std::system_error &) {
    }
    caught(0);
    for (std::thread &other : others) other.join();
    for (const std::exception_ptr &failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

void scan_all(const Variant &variant, const patchcaption_bank &bank, const Query &query, std::vector<Worker> &workers) {
    const int64_t threads = static_cast<int64_t>(workers.size());
    std::atomic<int64_t> next{0};
    in_threads(threads, [&](int64_t number) {
        Worker &mine = workers[number];
        for (int64_t begin; (begin = next.fetch_add(kRowsPerShare)) < bank.row_count;) {
            const int64_t end = std::min(bank.row_count, begin + kRowsPerShare);
            variant.scan(bank, query, begin, end, mine.fine, mine.partial, mine.scratch());
        }
    });
}

// The sum of what all workers have seen for one region, in the first one's place.
void join(std::vector<Worker> &workers, const Query &query, int64_t region) {
    Partial &first = workers[0].partial;
    float largest = -INFINITY;
    for (const Worker &worker : workers) largest = std::max(largest, worker.partial.largest[region]);
    float total = 0, reach = 0;
    for (std::size_t number = 0; number < workers.size(); ++number) {
        const Partial &partial = workers[number].partial;
        const float factor = std::exp(partial.largest[region] - largest);
        total += partial.total[region] * factor;
        reach += partial.reach[region] * factor;
        float *to = first.mixed + region * query.padded_width;
        const float *from = partial.mixed + region * query.padded_width;
        for (int64_t d = 0; d < query.padded_width; ++d) to[d] = (number ? to[d] : 0.0f) + from[d] * factor;
    }
    first.largest[region] = largest;
    first.total[region] = total;
    first.reach[region] = reach;
}

// The best rows of all workers for one region, with the logits they were found by.
std::vector<Candidate> best_of(const std::vector<Worker> &workers, int64_t region, int64_t best) {
    std::vector<Candidate> all;
    for (const Worker &worker : workers) {
        const Candidate *mine = worker.partial.candidates + region * worker.partial.capacity;
        all.insert(all.end(), mine, mine + worker.partial.counts[region]);
    }
    if (static_cast<int64_t>(all.size()) > best) {
        std::nth_element(all.begin(), all.begin() + best - 1, all.end(), by_logit);
        all.resize(best);
    }
    std::sort(all.begin(), all.end(), [](const Candidate &a, const Candidate &b) { return a.row < b.row; });
    return all;
}

// Some rows of a bank, side by side in a bank of their own.
class Gathered {
  public:
    explicit Gathered(const patchcaption_bank &bank)
        : from_(bank),
          reader_(bank, true),
          row_bytes_(bank.width * (bank.storage == PATCHCAPTION_FP32   ? 4
                                   : bank.storage == PATCHCAPTION_INT8 ? 1
                                                                       : 2)),
          rows_(zeros<char>(kBlock * row_bytes_)),
          fine_(zeros<int8_t>(kBlock * bank.width)) {
        here = bank;
        here.rows = rows_.get();
        here.scales = bank.scales ? scales_ : nullptr;
        here.fine = fine_.get();
        here.fine_scales = fine_scales_;
        here.inverse_norms = inverse_norms_;
    }

    void take(const Candidate *chosen, int64_t count) {
        const char *rows = static_cast<const char *>(from_.rows);
        for (int64_t number = 0; number < count; ++number) {
            const int64_t row = chosen[number].row;
            std::memcpy(rows_.get() + number * row_bytes_, rows + row * row_bytes_, row_bytes_);
            reader_.read_row(row, fine_.get() + number * from_.width);
            if (from_.scales) scales_[number] = from_.scales[row];
            fine_scales_[number] = from_.fine_scales[row];
            inverse_norms_[number] = from_.inverse_norms[row];
        }
    }

    patchcaption_bank here;

  private:
    const patchcaption_bank &from_;
    FineReader reader_;
    int64_t row_bytes_;
    Array<char> rows_;
    Array<int8_t> fine_;
    float scales_[kBlock], fine_scales_[kBlock], inverse_norms_[kBlock];
};

// Takes the best rows of a region out of its sums and puts them back with all that is known of them.
void refine(const Variant &variant, const patchcaption_bank &bank, const Query &query, int64_t region,
            const std::vector<Candidate> &best, Partial &partial, void *scratch) {
    Gathered gathered(bank);
    const float largest = partial.largest[region];
    float *mixed = partial.mixed + region * query.padded_width;
    double total = partial.total[region], reach = partial.reach[region];
    float weights[kBlock], logits[kBlock];
    for (std::size_t first = 0; first < best.size(); first += kBlock) {
        const int64_t count = std::min<int64_t>(kBlock, best.size() - first);
        gathered.take(best.data() + first, count);
        for (int64_t number = 0; number < count; ++number) {
            weights[number] = -std::exp(best[first + number].logit - largest);
            total += weights[number];
            reach += weights[number] / gathered.here.inverse_norms[number];
        }
        variant.add(gathered.here, query, count, false, weights, mixed, scratch);
        variant.logits(gathered.here, query, region, count, true, logits, scratch);
        for (int64_t number = 0; number < count; ++number) {
            weights[number] = std::exp(logits[number] - largest);
            total += weights[number];
        }
        variant.add(gathered.here, query, count, true, weights, mixed, scratch);
    }
    partial.total[region] = static_cast<float>(total);
    partial.reach[region] = static_cast<float>(std::max(0.0, reach));
}

// The variant of a name; without one the best for so many regions.
const Variant *find(const char *name, int64_t regions) {
    for (const Variant *variant : kVariants) {
        if (name ? std::strcmp(name, variant->name) != 0 : regions < variant->fewest_regions) continue;
        if (variant->is_usable()) return variant;
    }
    return nullptr;
}

bool is_sound(const patchcaption_bank *bank, const float *directions, int64_t regions, float temperature, int64_t best,
              const float *mixed) {
    return bank && directions && mixed && regions >= 0 && temperature > 0 && best >= 0 && bank->rows &&
           bank->inverse_norms && bank->row_count > 0 && bank->row_count <= UINT32_MAX && bank->width > 0 &&
           bank->storage >= PATCHCAPTION_FP32 && bank->storage <= PATCHCAPTION_INT8 &&
           (!bank->fine_scales || bank->fine || bank->fine_file >= 0);
}

int32_t project(const patchcaption_bank &bank, const float *directions, int64_t regions, float temperature,
                int64_t best, bool with_fine, int32_t threads, const Variant &variant, float *mixed, float *tail) {
    Query query{nullptr,         regions,  padded(regions, kRegionsPadding), padded(bank.width, kWidthPadding),
                1 / temperature, with_fine};
    const Array<float> copy = zeros<float>(query.padded_regions * query.padded_width);
    for (int64_t region = 0; region < regions; ++region) {
        std::memcpy(copy.get() + region * query.padded_width, directions + region * bank.width, 4 * bank.width);
    }
    query.directions = copy.get();
    const int64_t shares = (bank.row_count + kRowsPerShare - 1) / kRowsPerShare;
    const int64_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
    std::vector<Worker> workers;
    for (int64_t number = 0; number < std::min(wanted, shares); ++number)
        workers.emplace_back(variant, bank, query, best);
    scan_all(variant, bank, query, workers);
    std::atomic<int64_t> next{0};
    in_threads(std::min<int64_t>(wanted, workers.size()), [&](int64_t number) {
        for (int64_t region; (region = next.fetch_add(1)) < regions;) {
            join(workers, query, region);
            Partial &joined = workers[0].partial;
            if (best && bank.fine_scales) {
                refine(variant, bank, query, region, best_of(workers, region, best), joined, workers[number].scratch());
            }
            const float *sums = joined.mixed + region * query.padded_width;
            double length = 0;
            for (int64_t d = 0; d < bank.width; ++d) {
                mixed[region * bank.width + d] = sums[d] / joined.total[region];
                length += static_cast<double>(sums[d]) * sums[d];
            }
            if (tail) tail[region] = joined.reach[region] / static_cast<float>(std::sqrt(length));
        }
    });
    return PATCHCAPTION_OK;
}

// No exception leaves the library.
template <typename Work>
int32_t guarded(Work work) {
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return PATCHCAPTION_OUT_OF_MEMORY;
    } catch (...) {
        return PATCHCAPTION_UNREADABLE_FILE;
    }
}

}  // namespace
}  // namespace patchcaption

using namespace patchcaption;

extern "C" {

int32_t patchcaption_abi(void) { return PATCHCAPTION_ABI; }

const char *patchcaption_variant(int32_t place) {
    for (const Variant *variant : kVariants) {
        if (variant->is_usable() && place-- == 0) return variant->name;
    }
    return nullptr;
}

int32_t patchcaption_project(const patchcaption_bank *bank, const float *directions, int64_t regions, float temperature,
                             int32_t threads, const char *variant, float *mixed) {
    if (!is_sound(bank, directions, regions, temperature, 0, mixed)) return PATCHCAPTION_BAD_ARGUMENT;
    const Variant *found = find(variant, regions);
    if (!found) return PATCHCAPTION_NO_SUCH_VARIANT;
    return guarded([&] {
        return project(*bank, directions, regions, temperature, 0, bank->fine_scales != nullptr, threads, *found, mixed,
                       nullptr);
    });
}

int32_t patchcaption_project_best(const patchcaption_bank *bank, const float *directions, int64_t regions,
                                  float temperature, int64_t best, int32_t threads, const char *variant, float *mixed,
                                  float *tail) {
    if (!tail || !is_sound(bank, directions, regions, temperature, best, mixed)) return PATCHCAPTION_BAD_ARGUMENT;
    const Variant *found = find(variant, regions);
    if (!found) return PATCHCAPTION_NO_SUCH_VARIANT;
    return guarded(
        [&] { return project(*bank, directions, regions, temperature, best, false, threads, *found, mixed, tail); });
}
}
