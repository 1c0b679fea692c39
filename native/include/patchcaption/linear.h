/* Linear layers in 8 bits, and what surrounds them in a transformer, on CPUs where that is faster than what inference
 * runtimes do: Intel AMX.
 *
 * Shapes: R rows, K inputs and N outputs of a layer.
 *
 * Memory, threads and errors: as in projection.h. A layer may be used in several threads at once. Values are not
 * checked.
 */
#ifndef PATCHCAPTION_LINEAR_H
#define PATCHCAPTION_LINEAR_H

#include <stdint.h>

#include "patchcaption/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns the name of a variant of linear layers that this CPU supports, or NULL if there are no more. Index 0 is the
 * fastest. The only one is "amx"; the strings are static.
 */
PATCHCAPTION_API const char *patchcaption_linear_variant(int32_t index);

/* outputs = gelu(round(norm(inputs) / input_scale) @ weights * scales + biases), each of norm and gelu optional; or
 * with an input_scale of 0, for the steps of gpt2.h alone, norm(inputs) @ (weights * scales) + biases, where blocks of
 * 64 inputs of an output share a scale, and inputs are rounded to bfloat16.
 */
typedef struct patchcaption_layer {
    int64_t input_width, output_width; /* K, a multiple of 64, and N: at most 2**20, their product at most 2**31 */
    const int8_t *weights;             /* (K, N) */
    const float *scales;               /* (N,), those of weights and inputs multiplied; or (K / 64, N) */
    const float *biases;               /* (N,) */
    float input_scale;                 /* inputs are rounded to multiples of it, from -128 to 127; or 0 */
    const float *norm_weights;         /* (K,) of a LayerNorm; NULL for none */
    const float *norm_biases;
    float norm_epsilon; /* added to the variance */
    int32_t has_gelu;   /* GELU with the error function, exact to 1e-4 */
} patchcaption_layer;

typedef struct patchcaption_linear patchcaption_linear;

/* Makes a layer, which holds copies of all arrays.
 *
 * variant: of those that will use it, of which linear layers have "amx" alone, and the steps of gpt2.h others; NULL for
 * the fastest that this CPU supports.
 */
PATCHCAPTION_API int32_t patchcaption_linear_create(const patchcaption_layer *layer, const char *variant,
                                                    patchcaption_linear **created);

/* Frees a layer that is not in use; NULL is nothing. */
PATCHCAPTION_API void patchcaption_linear_free(patchcaption_linear *layer);

/* Computes layers, each from the outputs of the one before, of which no norm may follow another layer.
 *
 * inputs (R, K of the first), residual and outputs (R, N of the last): of `storage`, PATCHCAPTION_FP32 or
 * PATCHCAPTION_BF16. The residual, NULL for none, is added to the outputs, and may be the inputs.
 * layer_count: 1 or 2.
 * row_count: R, at least 1, at most 2**31.
 * threads: the most threads to use; 0 or less for one per hardware thread.
 */
PATCHCAPTION_API int32_t patchcaption_linear_run(const patchcaption_linear *const *layers, int64_t layer_count,
                                                 const void *inputs, const void *residual, int64_t row_count,
                                                 int32_t storage, int32_t threads, void *outputs);

#ifdef __cplusplus
}
#endif
#endif
