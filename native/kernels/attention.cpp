// The C interface of attention: distributes heads and their queries over threads.

#include "patchcaption/attention.h"

#include <algorithm>

#include "attention_interface.h"
#include "support.h"

namespace patchcaption {
namespace {

constexpr int64_t kTasksPerThread = 4;  // at least, where there are so many queries: threads end at about the same time
constexpr int64_t kMaxElements = int64_t{1} << 40, kMaxHeadWidth = 1024;
constexpr int64_t kHeadWidthMultiple = 32;

const AttentionVariant *select_attention() {
#if defined(__x86_64__)
    if (kAttentionAmx.is_supported()) return &kAttentionAmx;
#endif
    return nullptr;
}

bool is_valid(const AttentionShape &shape, const AttentionInputs &inputs, int32_t storage, const void *attended) {
    for (const patchcaption_heads *heads : {inputs.queries, inputs.keys, inputs.values}) {
        if (!heads || !heads->first) return false;
    }
    int64_t elements = 1;
    for (int64_t size : {shape.images, shape.tokens, shape.heads, shape.head_width}) {
        if (size < 1 || __builtin_mul_overflow(elements, size, &elements) || elements > kMaxElements) return false;
    }
    return attended && inputs.scale > 0 && shape.head_width % kHeadWidthMultiple == 0 &&
           shape.head_width <= kMaxHeadWidth && (storage == PATCHCAPTION_FP32 || storage == PATCHCAPTION_BF16);
}

int32_t attend(const AttentionVariant &variant, const AttentionShape &shape, const AttentionInputs &inputs,
               int64_t threads, void *attended) {
    const int64_t heads = shape.images * shape.heads;
    const int64_t blocks = round_up(shape.tokens, variant.query_block) / variant.query_block;
    const int64_t parts = std::min(blocks, (kTasksPerThread * threads + heads - 1) / heads);  // of a head's queries
    const int64_t part_queries = (blocks + parts - 1) / parts * variant.query_block;
    distribute(heads * parts, threads, variant.scratch_bytes(shape), [&](int64_t number, void *scratch) {
        const int64_t head = number / parts, first = number % parts * part_queries;
        const AttentionTask task{head / shape.heads, head % shape.heads, first,
                                 std::min(shape.tokens, first + part_queries)};
        if (first < task.last_query) variant.attend(shape, inputs, task, attended, scratch);
    });
    return PATCHCAPTION_OK;
}

}  // namespace
}  // namespace patchcaption

using namespace patchcaption;

extern "C" {

const char *patchcaption_attention_variant(int32_t index) {
    const AttentionVariant *variant = select_attention();
    return variant && index == 0 ? variant->name : nullptr;
}

int32_t patchcaption_attend(const patchcaption_heads *queries, const patchcaption_heads *keys,
                            const patchcaption_heads *values, int64_t image_count, int64_t token_count,
                            int64_t head_count, int64_t head_width, float scale, int32_t storage, int32_t threads,
                            void *attended) {
    const AttentionShape shape{image_count, token_count, head_count, head_width, storage == PATCHCAPTION_BF16};
    const AttentionInputs inputs{queries, keys, values, scale};
    if (!is_valid(shape, inputs, storage, attended)) return PATCHCAPTION_INVALID_ARGUMENT;
    const AttentionVariant *variant = select_attention();
    if (!variant) return PATCHCAPTION_UNSUPPORTED_VARIANT;
    return status_of([&] { return attend(*variant, shape, inputs, max_threads(threads), attended); });
}
}
