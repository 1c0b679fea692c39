// The interface of a scan over the rows of a bank. Every variant implements it, compiled for its own instruction set.
//
// Define no functions here that the linker could merge: the copy it keeps may use instructions that this CPU lacks.
//
// Shapes: R queries, M memory rows, D width; "padded" means rounded up to the constants below.
#pragma once

#include <cstdint>

#include "patchcaption/projection.h"

namespace patchcaption {

constexpr int64_t kQueryPadding = 16;  // for R: the lanes of the widest vector, and the columns of an AMX tile
constexpr int64_t kWidthPadding = 32;  // for D: the bfloat16 elements that one AMX instruction sums over
constexpr float kNegligible = 1e-5f;   // share of the weights that may be left out of a sum: 1/100 of the largest error
constexpr int64_t kBlock = 64;         // rows processed together: unpacked, they stay in the L2 cache

// The queries of one call.
struct QueryBatch {
    const float *unit_queries;  // (padded R, padded D), zero where padded
    int64_t count;              // R
    int64_t padded_count;
    int64_t padded_width;
    float inverse_temperature;
    bool with_residual;  // whether the scan adds the residual to the rows
};

struct Candidate {
    float logit;
    uint32_t row;
};

// The running softmax of every query over the rows that one thread has scanned, and the rows that may be refined.
struct Partial {
    float *max_logits;         // (padded R,)
    float *denominators;       // (padded R,) sum of exp(logit - max_logit)
    double *squared_errors;    // (padded R,) sum of exp(logit - max_logit)**2 * squared error of a row
    float *weighted_sum;       // (padded R, padded D) sum of exp(logit - max_logit) * row
    float *thresholds;         // (padded R,) a row is no candidate unless its logit is above this; no row is of padding
    float *negligible_logits;  // (padded R,) a row is left out unless its logit is above this
    Candidate *candidates;     // (R, candidate_capacity)
    int64_t *candidate_counts;        // (R,)
    int64_t candidate_capacity;       // 0 if no rows will be refined
    double kept_of_seen;              // candidates kept when there are too many, of the rows seen so far
    int64_t seen_before, task_begin;  // rows seen before the task, and where that begins
    // Discards the lower candidates of a query, half of them or more. `row` is the one that is seen now.
    void (*keep_top)(Partial &, int64_t query, uint32_t row);
};

// The residual of the rows that are being scanned.
class ResidualSource {
  public:
    virtual const int8_t *block(int64_t start, int64_t rows) = 0;  // (rows, D), or NULL if the residual is not used

  protected:
    ~ResidualSource() = default;
};

// A row that is refined: its logit without the residual, its number, its residual (D,).
struct RefinedRow {
    float logit;
    uint32_t row;
    const int8_t *residual;
};

// What one thread has summed of the rows that are refined, without their residuals ("stored") and with them.
struct RefinedSums {
    float *stored_sum;       // (R, padded D) sum of exp(logit - max_logit) * row
    float *sum;              // (R, padded D)
    double *stored_weights;  // (R,) sum of exp(logit - max_logit)
    double *weights;         // (R,)
};

using Scan = void (*)(const patchcaption_bank &, const QueryBatch &, int64_t begin, int64_t end, ResidualSource &,
                      Partial &, void *scratch);

struct Variant {
    const char *name;
    int64_t min_queries;  // fewer do not repay its preparation of rows and queries
    bool (*is_supported)();
    int64_t (*scratch_bytes)(const patchcaption_bank &, const QueryBatch &);
    // Adds rows [begin, end) to the running softmax of every query.
    Scan scan;
    // Adds rows (count,) to the sums of one query.
    void (*refine)(const patchcaption_bank &, const QueryBatch &, int64_t query, float max_logit,
                   const RefinedRow *rows, int64_t count, RefinedSums &, void *scratch);
};

extern const Variant kBaseline;
#if defined(__x86_64__)
extern const Variant kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx;
#elif defined(__aarch64__)
extern const Variant kDotprod, kI8mm;
#endif

}  // namespace patchcaption
