/* Attention of a vision transformer, on CPUs where that is faster than what inference runtimes do: Intel AMX.
 *
 * Shapes: B images, T tokens, H heads, W the width of a head.
 *
 * Memory, threads and errors: as in projection.h. A call allocates about 4 * W * (T + 64) + 30,000 bytes per thread.
 * Values are not checked: a token with NaN in query, key and value gives NaN, of all tokens that attend to it.
 */
#ifndef PATCHCAPTION_ATTENTION_H
#define PATCHCAPTION_ATTENTION_H

#include <stdint.h>

#include "patchcaption/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns the name of a variant of attention that this CPU supports, or NULL if there are no more. Index 0 is the
 * fastest. The only one is "amx"; the strings are static.
 */
PATCHCAPTION_API const char *patchcaption_attention_variant(int32_t index);

/* Queries, keys or values, (B, H, T, W) in any order of the first three axes. Strides are in elements. */
typedef struct patchcaption_heads {
    const void *first; /* element 0 of the first token of the first head of the first image */
    int64_t image_stride, head_stride, token_stride;
} patchcaption_heads;

/* Computes softmax(scale * queries @ keys') @ values of every head of every image, without a mask.
 *
 * Products are of bfloat16, sums float32: the result differs from that of exact products of the bfloat16 nearest to
 * queries, keys and values by 5e-3 of its length at most, which weights that are exact to 0.35% cause.
 *
 * image_count, token_count, head_count: B, T and H, at least 1; their product with W is at most 2**40.
 * head_width: W, a multiple of 32, at most 1024.
 * scale: above 0.
 * storage: of all arrays, PATCHCAPTION_FP32 or PATCHCAPTION_BF16; they are aligned as their elements are.
 * threads: the most threads to use; 0 or less for one per hardware thread.
 * attended (B, T, H, W): the result. It may not share memory with the others.
 */
PATCHCAPTION_API int32_t patchcaption_attend(const patchcaption_heads *queries, const patchcaption_heads *keys,
                                             const patchcaption_heads *values, int64_t image_count, int64_t token_count,
                                             int64_t head_count, int64_t head_width, float scale, int32_t storage,
                                             int32_t threads, void *attended);

#ifdef __cplusplus
}
#endif
#endif
