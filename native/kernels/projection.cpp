// The C interface: distributes the rows over threads, merges their softmaxes, and refines the top rows by the residual.

#include "patchcaption/projection.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "refinement.h"
#include "residual_reader.h"
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
constexpr int64_t kMinKept = 64;    // of a query's candidates
constexpr int64_t kKeptMargin = 4;  // times as many are kept as are expected of the rows seen so far
constexpr int64_t kMaxWidth = 1 << 20, kMaxQueries = 1 << 24;  // far above all use; no sum of sizes can overflow

// Keeps the upper half of a query's candidates, when their array is full, or fewer that are likely to be enough.
void keep_top(Partial &partial, int64_t query, uint32_t row) {
    Candidate *candidates = partial.candidates + query * partial.candidate_capacity;
    const double likely =
        partial.kept_of_seen * static_cast<double>(partial.seen_before + row + 1 - partial.task_begin);
    const int64_t half = partial.candidate_capacity / 2;
    const int64_t kept = std::min(half, std::max<int64_t>(kMinKept, std::llround(std::min(likely, 1e18))));
    std::nth_element(candidates, candidates + kept - 1, candidates + partial.candidate_counts[query], has_higher_logit);
    partial.candidate_counts[query] = kept;
    partial.thresholds[query] = candidates[kept - 1].logit;
}

// What one thread works with: its Partial and the memory that points to, its residual reader, its scratch memory.
class Worker {
  public:
    Worker(const Variant &variant, const patchcaption_bank &bank, const QueryBatch &batch, int64_t refine_top_k,
           bool keeps_all)
        : residual(bank, batch.with_residual),
          floats_(allocate_zeroed<float>(multiply(batch.padded_count, 4 + batch.padded_width))),
          squared_errors_(allocate_zeroed<double>(batch.padded_count)),
          candidates_(allocate_zeroed<Candidate>(multiply(2 * refine_top_k, batch.count))),
          counts_(allocate_zeroed<int64_t>(batch.count)),
          scratch_(allocate_zeroed<char>(variant.scratch_bytes(bank, batch))) {
        float *next = floats_.get();
        partial.weighted_sum = next;
        next += batch.padded_count * batch.padded_width;
        for (float **array :
             {&partial.max_logits, &partial.denominators, &partial.thresholds, &partial.negligible_logits}) {
            *array = next;
            next += batch.padded_count;
        }
        std::fill_n(partial.max_logits, batch.padded_count, -INFINITY);
        std::fill_n(partial.thresholds, batch.count, -INFINITY);
        std::fill_n(partial.thresholds + batch.count, batch.padded_count - batch.count, INFINITY);
        std::fill_n(partial.negligible_logits, batch.count, -INFINITY);
        std::fill_n(partial.negligible_logits + batch.count, batch.padded_count - batch.count, INFINITY);
        partial.squared_errors = squared_errors_.get();
        partial.candidates = candidates_.get();
        partial.candidate_counts = counts_.get();
        partial.candidate_capacity = 2 * refine_top_k;
        partial.kept_of_seen = keeps_all ? INFINITY : static_cast<double>(kKeptMargin * refine_top_k) / bank.row_count;
        partial.seen_before = partial.task_begin = 0;
        partial.keep_top = keep_top;
    }

    void *scratch() { return scratch_.get(); }

    ResidualReader residual;
    Partial partial;

  private:
    AlignedArray<float> floats_;
    AlignedArray<double> squared_errors_;
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
            worker.partial.task_begin = begin;
            variant.scan(bank, batch, begin, end, worker.residual, worker.partial, worker.scratch());
            worker.partial.seen_before += end - begin;
        }
    });
}

// Merges all workers' partial results for one query into the first worker's.
void merge_partials(std::vector<Worker> &workers, const QueryBatch &batch, int64_t query) {
    Partial &merged = workers[0].partial;
    float max_logit = -INFINITY;
    for (const Worker &worker : workers) max_logit = std::max(max_logit, worker.partial.max_logits[query]);
    float denominator = 0;
    double squared_errors = 0;
    for (std::size_t index = 0; index < workers.size(); ++index) {
        const Partial &partial = workers[index].partial;
        const float factor = std::exp(partial.max_logits[query] - max_logit);
        denominator += partial.denominators[query] * factor;
        squared_errors += partial.squared_errors[query] * factor * factor;
        float *to = merged.weighted_sum + query * batch.padded_width;
        const float *from = partial.weighted_sum + query * batch.padded_width;
        for (int64_t d = 0; d < batch.padded_width; ++d) to[d] = (index ? to[d] : 0.0f) + from[d] * factor;
    }
    merged.max_logits[query] = max_logit;
    merged.denominators[query] = denominator;
    merged.squared_errors[query] = squared_errors;
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

// Calls work(query) for every query, in as many threads as there are workers.
template <typename Work>
void for_each_query(int64_t query_count, const std::vector<Worker> &workers, Work work) {
    std::atomic<int64_t> next{0};
    run_in_threads(static_cast<int64_t>(workers.size()), [&](int64_t) {
        for (int64_t query; (query = next.fetch_add(1)) < query_count;) work(query);
    });
}

// Puts refined rows in the place of stored ones in the first worker's sums; writes what each query has unrefined.
void refine_all(const Variant &variant, const patchcaption_bank &bank, const QueryBatch &batch, int64_t top_k,
                double max_error, std::vector<Worker> &workers, UnrefinedRest *rests) {
    Partial &merged = workers[0].partial;
    std::vector<const Partial *> partials;
    for (const Worker &worker : workers) partials.push_back(&worker.partial);
    Refinement refinement(variant, bank, batch, top_k, static_cast<int64_t>(workers.size()));
    for_each_query(batch.count, workers, [&](int64_t query) { refinement.choose(query, partials, merged, max_error); });
    std::atomic<int64_t> next_range{0};
    run_in_threads(static_cast<int64_t>(workers.size()),
                   [&](int64_t thread) { refinement.sum(thread, merged, next_range, workers[thread].scratch()); });
    for_each_query(batch.count, workers, [&](int64_t query) { rests[query] = refinement.apply(query, merged); });
}

// The queries padded with zeros (padded R, padded D).
AlignedArray<float> pad_queries(const float *unit_queries, const QueryBatch &batch, int64_t width) {
    AlignedArray<float> padded = allocate_zeroed<float>(multiply(batch.padded_count, batch.padded_width));
    for (int64_t query = 0; query < batch.count; ++query) {
        std::memcpy(padded.get() + query * batch.padded_width, unit_queries + query * width, 4 * width);
    }
    return padded;
}

// `rests` (R,) is NULL for residuals of all rows; else up to `refine_top_k` of the nearest rows are refined.
int32_t project(const patchcaption_bank &bank, const float *unit_queries, int64_t query_count, float temperature,
                int64_t refine_top_k, double max_error, int32_t threads, const Variant &variant, float *weighted_sum,
                UnrefinedRest *rests) {
    const bool has_residual = bank.residual_scales != nullptr;
    const int64_t padded_count = round_up(query_count, kQueryPadding);
    const int64_t padded_width = round_up(bank.width, kWidthPadding);
    QueryBatch batch{nullptr, query_count, padded_count, padded_width, 1 / temperature, has_residual && !rests};
    const AlignedArray<float> padded = pad_queries(unit_queries, batch, bank.width);
    batch.unit_queries = padded.get();
    const int64_t row_share = bank.row_count / (kTasksPerThread * max_threads(threads));
    const int64_t task_rows = std::clamp(round_up(row_share, kMinTaskRows), kMinTaskRows, kMaxTaskRows);
    const int64_t tasks = (bank.row_count + task_rows - 1) / task_rows;
    std::vector<Worker> workers;
    for (int64_t thread = 0; thread < std::min(max_threads(threads), tasks); ++thread) {
        workers.emplace_back(variant, bank, batch, refine_top_k, max_error == 0);
    }
    scan_all(variant, bank, batch, task_rows, workers);
    for_each_query(query_count, workers, [&](int64_t query) { merge_partials(workers, batch, query); });
    if (has_residual && rests) refine_all(variant, bank, batch, refine_top_k, max_error, workers, rests);
    const Partial &merged = workers[0].partial;
    for (int64_t query = 0; query < query_count; ++query) {
        const float *sums = merged.weighted_sum + query * padded_width;
        for (int64_t d = 0; d < bank.width; ++d) {
            weighted_sum[query * bank.width + d] = sums[d] / merged.denominators[query];
        }
    }
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
        return project(*bank, unit_queries, query_count, temperature, 0, 0, threads, *selected, weighted_sum, nullptr);
    });
}

int32_t patchcaption_project_with_refinement(const patchcaption_bank *bank, const float *unit_queries,
                                             int64_t query_count, float temperature, int64_t refine_top_k,
                                             float max_error, int32_t threads, const char *variant, float *weighted_sum,
                                             float *unrefined_error, float *unrefined_drift) {
    if (!unrefined_error || !unrefined_drift || !(max_error >= 0) ||
        !is_valid(bank, unit_queries, query_count, temperature, refine_top_k, weighted_sum)) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    const Variant *selected = select_variant(variant, query_count);
    if (!selected) return PATCHCAPTION_UNSUPPORTED_VARIANT;
    return status_of([&] {
        std::vector<UnrefinedRest> rests(query_count);
        // An error of a row, and of its weight by that of its logit.
        const double factor = std::hypot(1, 1 / (temperature * std::sqrt(static_cast<double>(bank->width))));
        project(*bank, unit_queries, query_count, temperature, std::min(refine_top_k, bank->row_count),
                max_error / factor, threads, *selected, weighted_sum, rests.data());
        for (int64_t query = 0; query < query_count; ++query) {
            unrefined_error[query] = static_cast<float>(rests[query].error * factor);
            unrefined_drift[query] = static_cast<float>(rests[query].drift);
        }
        return PATCHCAPTION_OK;
    });
}
}
