// The seam between the attention's C interface and its variants.
#pragma once

#include <cstdint>

#include "patchcaption/attention.h"

namespace patchcaption {

struct AttentionShape {
    int64_t images, tokens, heads, head_width;  // B, T, H, W
    bool is_bf16;                               // all arrays are; else they are float32
};

struct AttentionInputs {
    const patchcaption_heads *queries, *keys, *values;
    float scale;  // of the scores
};

// Some queries of one head of one image.
struct AttentionTask {
    int64_t image, head, first_query, last_query;  // first_query is a multiple of query_block
};

struct AttentionVariant {
    const char *name;
    int64_t query_block;  // queries that are computed together
    bool (*is_supported)();
    int64_t (*scratch_bytes)(const AttentionShape &);
    void (*attend)(const AttentionShape &, const AttentionInputs &, const AttentionTask &, void *attended,
                   void *scratch);
};

#if defined(__x86_64__)
extern const AttentionVariant kAttentionAmx;
#endif

}  // namespace patchcaption
