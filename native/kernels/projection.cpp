// The C interface: distributes the rows over threads, merges their softmaxes, and refines the top rows by the residual.

#include "patchcaption/projection.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "scan_interface.h"
#include "support.h"

namespace patchcaption {
namespace {

// Fastest first.
// clang-format off
constexpr const Variant *kVariants[] = {
#if defined(__x86_64__)
    &kAmx,
    &kAvx512Bf16,
    &kAvx512Vnni,
    &kAvx512,
    &kAvxVnni,
    &kAvx2,
#elif defined(__aarch64__)
    &kI8mm,
    &kDotprod,
#endif
    &kBaseline,
};
// clang-format on
constexpr int64_t kMaxTaskRows = 1 << 14, kMinTaskRows = 1 << 11;  // a thread that becomes free takes so many
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kResidualRows = 256;  // read from its file at a time: they stay in the second-level cache
constexpr int64_t kMaxWidth = 1 << 20, kMaxQueries = 1 << 24;  // far above all use; no sum of sizes can overflow

bool has_higher_logit(const Candidate &a, const Candidate &b) { return a.logit > b.logit; }

// Keeps the upper half of a query's candidates, when their array is full.
void keep_top(Partial &partial, int64_t query) {
    Candidate *candidates = partial.candidates + query * partial.candidate_capacity;
    const int64_t kept = partial.candidate_capacity / 2;
    std::nth_element(candidates, candidates + kept - 1, candidates + partial.candidate_counts[query], has_higher_logit);
    partial.candidate_counts[query] = kept;
    partial.thresholds[query] = candidates[kept - 1].logit;
}

// Reads the residual from memory or from its file, some rows at a time. The file is not mapped: if another process
// shortens it, reading is an error, where touching a mapping would be the end of this process.
class ResidualReader : public ResidualSource {
  public:
    ResidualReader(const patchcaption_bank &bank, bool is_enabled) : bank_(bank), is_enabled_(is_enabled) {}
    ResidualReader(const ResidualReader &) = delete;
    ResidualReader(ResidualReader &&) noexcept = default;

    const int8_t *block(int64_t start, int64_t rows) override {
        if (!is_enabled_) return nullptr;
        if (bank_.residual) return bank_.residual + start * bank_.width;
        if (start < first_ || start + rows > last_) read_around(start, rows);
        return rows_.get() + (start - first_) * bank_.width;
    }

    void read_row(int64_t row, int8_t *out) const {
        if (bank_.residual) {
            std::memcpy(out, bank_.residual + row * bank_.width, bank_.width);
        } else {
            read(row, 1, out);
        }
    }

  private:
    // Reads at least the rows asked for: groups of queries ask for the same ones, one after another.
    void read_around(int64_t start, int64_t rows) {
        const int64_t first = start / kResidualRows * kResidualRows;
        const int64_t end = std::min(bank_.row_count, std::max(first + kResidualRows, start + rows));
        if (end - first > capacity_) {
            rows_ = allocate<int8_t>((end - first) * bank_.width);
            capacity_ = end - first;
        }
        first_ = last_ = 0;  // of nothing, should reading fail
        read(first, end - first, rows_.get());
        first_ = first;
        last_ = end;
    }

    void read(int64_t start, int64_t rows, int8_t *out) const {
        const int64_t offset = bank_.residual_offset + start * bank_.width, bytes = rows * bank_.width;
        for (int64_t done = 0; done < bytes;) {
            const ssize_t count = pread(bank_.residual_fd, out + done, bytes - done, offset + done);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) throw std::runtime_error("the residual's file is truncated or cannot be read");
            done += count;
        }
    }

    const patchcaption_bank &bank_;
    bool is_enabled_;
    AlignedArray<int8_t> rows_;
    int64_t capacity_ = 0, first_ = 0, last_ = 0;
};

// What one thread works with: its Partial and the memory that points to, its residual reader, its scratch memory.
class Worker {
  public:
    Worker(const Variant &variant, const patchcaption_bank &bank, const QueryBatch &batch, int64_t refine_top_k)
        : residual(bank, batch.with_residual),
          floats_(allocate_zeroed<float>(multiply(batch.padded_count, 5 + batch.padded_width))),
          candidates_(allocate_zeroed<Candidate>(multiply(2 * refine_top_k, batch.count))),
          counts_(allocate_zeroed<int64_t>(batch.count)),
          scratch_(allocate_zeroed<char>(variant.scratch_bytes(bank, batch))) {
        float *next = floats_.get();
        partial.weighted_sum = next;
        next += batch.padded_count * batch.padded_width;
        for (float **array : {&partial.max_logits, &partial.denominators, &partial.weighted_norms, &partial.thresholds,
                              &partial.negligible_logits}) {
            *array = next;
            next += batch.padded_count;
        }
        std::fill_n(partial.max_logits, batch.padded_count, -INFINITY);
        std::fill_n(partial.thresholds, batch.padded_count, -INFINITY);
        std::fill_n(partial.negligible_logits, batch.count, -INFINITY);
        std::fill_n(partial.negligible_logits + batch.count, batch.padded_count - batch.count, INFINITY);
        partial.candidates = candidates_.get();
        partial.candidate_counts = counts_.get();
        partial.candidate_capacity = 2 * refine_top_k;
        partial.keep_top = keep_top;
    }

    void *scratch() { return scratch_.get(); }

    ResidualReader residual;
    Partial partial;

  private:
    AlignedArray<float> floats_;
    AlignedArray<Candidate> candidates_;
    AlignedArray<int64_t> counts_;
    AlignedArray<char> scratch_;
};

void scan_all(const Variant &variant, const patchcaption_bank &bank, const QueryBatch &batch, int64_t task_rows,
              std::vector<Worker> &workers) {
    const int64_t threads = static_cast<int64_t>(workers.size());
    std::atomic<int64_t> next{0};
    run_in_threads(threads, [&](int64_t thread) {
        Worker &worker = workers[thread];
        for (int64_t begin; (begin = next.fetch_add(task_rows)) < bank.row_count;) {
            const int64_t end = std::min(bank.row_count, begin + task_rows);
            variant.scan(bank, batch, begin, end, worker.residual, worker.partial, worker.scratch());
        }
    });
}

// Merges all workers' partial results for one query into the first worker's.
void merge_partials(std::vector<Worker> &workers, const QueryBatch &batch, int64_t query) {
    Partial &merged = workers[0].partial;
    float max_logit = -INFINITY;
    for (const Worker &worker : workers) max_logit = std::max(max_logit, worker.partial.max_logits[query]);
    float denominator = 0, weighted_norm = 0;
    for (std::size_t index = 0; index < workers.size(); ++index) {
        const Partial &partial = workers[index].partial;
        const float factor = std::exp(partial.max_logits[query] - max_logit);
        denominator += partial.denominators[query] * factor;
        weighted_norm += partial.weighted_norms[query] * factor;
        float *to = merged.weighted_sum + query * batch.padded_width;
        const float *from = partial.weighted_sum + query * batch.padded_width;
        for (int64_t d = 0; d < batch.padded_width; ++d) to[d] = (index ? to[d] : 0.0f) + from[d] * factor;
    }
    merged.max_logits[query] = max_logit;
    merged.denominators[query] = denominator;
    merged.weighted_norms[query] = weighted_norm;
}

// The `count` rows with the highest logits for one query, from all workers, in the order of the bank. Their logits are
// those of the scan, without the residual.
std::vector<Candidate> top_rows(const std::vector<Worker> &workers, int64_t query, int64_t count) {
    std::vector<Candidate> rows;
    for (const Worker &worker : workers) {
        const Candidate *candidates = worker.partial.candidates + query * worker.partial.candidate_capacity;
        rows.insert(rows.end(), candidates, candidates + worker.partial.candidate_counts[query]);
    }
    if (static_cast<int64_t>(rows.size()) > count) {
        std::nth_element(rows.begin(), rows.begin() + count - 1, rows.end(), has_higher_logit);
        rows.resize(count);
    }
    std::sort(rows.begin(), rows.end(), [](const Candidate &a, const Candidate &b) { return a.row < b.row; });
    return rows;
}

// Up to kBlock rows of a bank, copied into a small bank with their residuals.
class GatheredRows {
  public:
    explicit GatheredRows(const patchcaption_bank &source)
        : source_(source),
          reader_(source, true),
          row_bytes_(source.width * (source.storage == PATCHCAPTION_FP32   ? 4
                                     : source.storage == PATCHCAPTION_INT8 ? 1
                                                                           : 2)),
          rows_(allocate_zeroed<char>(kBlock * row_bytes_)),
          residual_(allocate_zeroed<int8_t>(kBlock * source.width)) {
        bank = source;
        bank.rows = rows_.get();
        bank.scales = source.scales ? scales_ : nullptr;
        bank.residual = residual_.get();
        bank.residual_scales = residual_scales_;
        bank.inverse_norms = inverse_norms_;
    }

    void gather(const Candidate *chosen, int64_t count) {
        const char *rows = static_cast<const char *>(source_.rows);
        for (int64_t index = 0; index < count; ++index) {
            const int64_t row = chosen[index].row;
            std::memcpy(rows_.get() + index * row_bytes_, rows + row * row_bytes_, row_bytes_);
            reader_.read_row(row, residual_.get() + index * source_.width);
            if (source_.scales) scales_[index] = source_.scales[row];
            residual_scales_[index] = source_.residual_scales[row];
            inverse_norms_[index] = source_.inverse_norms[row];
        }
    }

    patchcaption_bank bank;

  private:
    const patchcaption_bank &source_;
    ResidualReader reader_;
    int64_t row_bytes_;
    AlignedArray<char> rows_;
    AlignedArray<int8_t> residual_;
    float scales_[kBlock], residual_scales_[kBlock], inverse_norms_[kBlock];
};

// Subtracts a query's top rows from its sums and adds them again with their residuals.
void refine(const Variant &variant, const patchcaption_bank &bank, const QueryBatch &batch, int64_t query,
            const std::vector<Candidate> &top, Partial &partial, void *scratch) {
    GatheredRows gathered(bank);
    const float max_logit = partial.max_logits[query];
    float *weighted_sum = partial.weighted_sum + query * batch.padded_width;
    double denominator = partial.denominators[query], weighted_norm = partial.weighted_norms[query];
    float weights[kBlock], logits[kBlock];
    for (std::size_t first = 0; first < top.size(); first += kBlock) {
        const int64_t count = std::min<int64_t>(kBlock, top.size() - first);
        gathered.gather(top.data() + first, count);
        for (int64_t index = 0; index < count; ++index) {
            weights[index] = -std::exp(top[first + index].logit - max_logit);
            denominator += weights[index];
            weighted_norm += weights[index] / gathered.bank.inverse_norms[index];
        }
        variant.accumulate(gathered.bank, batch, count, false, weights, weighted_sum, scratch);
        variant.logits(gathered.bank, batch, query, count, true, logits, scratch);
        for (int64_t index = 0; index < count; ++index) {
            weights[index] = std::exp(logits[index] - max_logit);
            denominator += weights[index];
        }
        variant.accumulate(gathered.bank, batch, count, true, weights, weighted_sum, scratch);
    }
    partial.denominators[query] = static_cast<float>(denominator);
    partial.weighted_norms[query] = static_cast<float>(std::max(0.0, weighted_norm));
}

// The variant of that name, or without a name the fastest for so many queries; NULL if the CPU does not support it.
const Variant *select_variant(const char *name, int64_t query_count) {
    for (const Variant *variant : kVariants) {
        if (name ? std::strcmp(name, variant->name) != 0 : query_count < variant->min_queries) continue;
        if (variant->is_supported()) return variant;
    }
    return nullptr;
}

bool is_valid(const patchcaption_bank *bank, const float *unit_queries, int64_t query_count, float temperature,
              int64_t refine_top_k, const float *weighted_sum) {
    int64_t residual_end;
    return bank && unit_queries && weighted_sum && query_count >= 0 && query_count <= kMaxQueries && temperature > 0 &&
           refine_top_k >= 0 && bank->rows && bank->inverse_norms && bank->row_count > 0 &&
           bank->row_count <= UINT32_MAX && bank->width > 0 && bank->width <= kMaxWidth &&
           bank->storage >= PATCHCAPTION_FP32 && bank->storage <= PATCHCAPTION_INT8 &&
           (!bank->residual_scales || bank->residual || bank->residual_fd >= 0) && bank->residual_offset >= 0 &&
           !__builtin_add_overflow(bank->residual_offset, bank->row_count * bank->width, &residual_end);
}

int32_t project(const patchcaption_bank &bank, const float *unit_queries, int64_t query_count, float temperature,
                int64_t refine_top_k, bool with_residual, int32_t threads, const Variant &variant, float *weighted_sum,
                float *unrefined_mass) {
    refine_top_k = std::min(refine_top_k, bank.row_count);
    const int64_t padded_count = round_up(query_count, kQueryPadding);
    const int64_t padded_width = round_up(bank.width, kWidthPadding);
    QueryBatch batch{nullptr, query_count, padded_count, padded_width, 1 / temperature, with_residual};
    const AlignedArray<float> padded = allocate_zeroed<float>(multiply(batch.padded_count, batch.padded_width));
    for (int64_t query = 0; query < query_count; ++query) {
        std::memcpy(padded.get() + query * batch.padded_width, unit_queries + query * bank.width, 4 * bank.width);
    }
    batch.unit_queries = padded.get();
    const int64_t row_share = bank.row_count / (kTasksPerThread * max_threads(threads));
    const int64_t task_rows = std::clamp(round_up(row_share, kMinTaskRows), kMinTaskRows, kMaxTaskRows);
    const int64_t tasks = (bank.row_count + task_rows - 1) / task_rows;
    std::vector<Worker> workers;
    for (int64_t thread = 0; thread < std::min(max_threads(threads), tasks); ++thread) {
        workers.emplace_back(variant, bank, batch, refine_top_k);
    }
    scan_all(variant, bank, batch, task_rows, workers);
    std::atomic<int64_t> next{0};
    run_in_threads(static_cast<int64_t>(workers.size()), [&](int64_t thread) {
        for (int64_t query; (query = next.fetch_add(1)) < query_count;) {
            merge_partials(workers, batch, query);
            Partial &merged = workers[0].partial;
            if (refine_top_k && bank.residual_scales) {
                refine(variant, bank, batch, query, top_rows(workers, query, refine_top_k), merged,
                       workers[thread].scratch());
            }
            const float *sums = merged.weighted_sum + query * batch.padded_width;
            double squared_length = 0;
            for (int64_t d = 0; d < bank.width; ++d) {
                weighted_sum[query * bank.width + d] = sums[d] / merged.denominators[query];
                squared_length += static_cast<double>(sums[d]) * sums[d];
            }
            if (unrefined_mass) {
                unrefined_mass[query] = merged.weighted_norms[query] / static_cast<float>(std::sqrt(squared_length));
            }
        }
    });
    return PATCHCAPTION_OK;
}

}  // namespace
}  // namespace patchcaption

using namespace patchcaption;

extern "C" {

const char *patchcaption_variant(int32_t index) {
    for (const Variant *variant : kVariants) {
        if (variant->is_supported() && index-- == 0) return variant->name;
    }
    return nullptr;
}

int32_t patchcaption_project(const patchcaption_bank *bank, const float *unit_queries, int64_t query_count,
                             float temperature, int32_t threads, const char *variant, float *weighted_sum) {
    if (!is_valid(bank, unit_queries, query_count, temperature, 0, weighted_sum)) return PATCHCAPTION_INVALID_ARGUMENT;
    const Variant *selected = select_variant(variant, query_count);
    if (!selected) return PATCHCAPTION_UNSUPPORTED_VARIANT;
    return status_of([&] {
        const bool with_residual = bank->residual_scales != nullptr;
        return project(*bank, unit_queries, query_count, temperature, 0, with_residual, threads, *selected,
                       weighted_sum, nullptr);
    });
}

int32_t patchcaption_project_with_refinement(const patchcaption_bank *bank, const float *unit_queries,
                                             int64_t query_count, float temperature, int64_t refine_top_k,
                                             int32_t threads, const char *variant, float *weighted_sum,
                                             float *unrefined_mass) {
    if (!unrefined_mass || !is_valid(bank, unit_queries, query_count, temperature, refine_top_k, weighted_sum)) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    const Variant *selected = select_variant(variant, query_count);
    if (!selected) return PATCHCAPTION_UNSUPPORTED_VARIANT;
    return status_of([&] {
        return project(*bank, unit_queries, query_count, temperature, refine_top_k, false, threads, *selected,
                       weighted_sum, unrefined_mass);
    });
}
}
