// What a scan over the rows of a bank takes and gives; each variant of it is compiled for other instructions.
//
// This header is included by code for different instructions, so it must not define functions that would be merged.
#pragma once

#include <cstdint>

#include "patchcaption/projection.h"

namespace patchcaption {

constexpr int64_t kRegionsPadding = 16;  // of R: the lanes of the widest vector, the columns of an AMX tile
constexpr int64_t kWidthPadding = 32;    // of D: what one AMX instruction sums up
constexpr int64_t kBlock = 64;           // rows worked on at once: unpacked they stay in the second cache

struct Query {
    const float *directions;  // (padded R, padded D), zero where padded
    int64_t regions;          // R
    int64_t padded_regions;
    int64_t padded_width;
    float inverse_temperature;
    bool with_fine;
};

struct Candidate {
    float logit;
    uint32_t row;
};

// What one thread has seen of the rows so far: the running softmax of every region.
struct Partial {
    float *largest;                            // (padded R,) the largest logit
    float *total;                              // (padded R,) the sum of exp(logit - largest)
    float *reach;                              // (padded R,) the sum of exp(logit - largest) * row length
    float *mixed;                              // (padded R, padded D) the sum of exp(logit - largest) * row
    float *floors;                             // (padded R,) rows with a logit at or below it are not among the best
    Candidate *candidates;                     // (R, capacity)
    int64_t *counts;                           // (R,) how many of them
    int64_t capacity;                          // 0 where no best rows are asked for
    void (*prune)(Partial &, int64_t region);  // makes room among the candidates of a region
};

// Where `fine` of a block of rows comes from.
class FineRows {
  public:
    virtual const int8_t *block(int64_t start, int64_t rows) = 0;  // (rows, D); NULL where it is not wanted

  protected:
    ~FineRows() = default;
};

using Scan = void (*)(const patchcaption_bank &, const Query &, int64_t begin, int64_t end, FineRows &, Partial &,
                      void *scratch);

struct Variant {
    const char *name;
    int64_t fewest_regions;  // for which it is worth its preparations
    bool (*is_usable)();
    int64_t (*scratch_bytes)(const patchcaption_bank &, const Query &);
    Scan scan;
    // One region's logits (count,) of the first rows of a bank: cosine / temperature.
    void (*logits)(const patchcaption_bank &, const Query &, int64_t region, int64_t count, bool with_fine,
                   float *logits, void *scratch);
    // mixed (padded D,) += weights (count,) times the first rows of a bank.
    void (*add)(const patchcaption_bank &, const Query &, int64_t count, bool with_fine, const float *weights,
                float *mixed, void *scratch);
};

extern const Variant kBaseline;
#if defined(__x86_64__)
extern const Variant kAvx2, kAvx512, kAmx;
#endif

}  // namespace patchcaption
