/* A step of a GPT-2 whose weights are in 8 bits, on CPUs where that is faster than what inference runtimes do: with
 * Intel AMX, or AVX-512 with VNNI and BF16.
 *
 * Shapes: R rows, each one position of a text; D width of vectors, E width, F width of the MLPs, H heads, d = E / H, P
 * positions of the cache, V vocabulary.
 *
 * Memory, threads and errors: as in projection.h. Values are not checked.
 */
#ifndef PATCHCAPTION_GPT2_H
#define PATCHCAPTION_GPT2_H

#include <stdint.h>

#include "patchcaption/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns the name of a variant of steps that this CPU supports, or NULL if there are no more. Index 0 is the fastest.
 * The names are "amx" and "avx512bf16" (with VNNI); the strings are static. A step is of the variant of its layers.
 */
PATCHCAPTION_API const char *patchcaption_gpt2_variant(int32_t index);

/* The layers of a block. Those of inputs begin with a norm; the tanh form of GELU follows those of `mlp_inputs`, which
 * have none of their own. Those of outputs have inputs that are not rounded to 8 bits.
 */
typedef struct patchcaption_gpt2_block {
    const patchcaption_linear *attention_inputs;  /* (E, 3 * E): queries, keys, values */
    const patchcaption_linear *attention_outputs; /* (E, E) */
    const patchcaption_linear *mlp_inputs;        /* (E, F) */
    const patchcaption_linear *mlp_outputs;       /* (F, E) */
} patchcaption_gpt2_block;

typedef struct patchcaption_gpt2 {
    const patchcaption_gpt2_block *blocks;
    int64_t block_count;                   /* at least 1, at most 1024 */
    int64_t head_count;                    /* H; d is a multiple of 16 */
    const patchcaption_linear *vocabulary; /* (E, V), from the last norm on */
    const float *embeddings;               /* (V, E), what `vocabulary` has in 8 bits */
    const patchcaption_linear *projection; /* (D, E) of vectors, without a norm, whose inputs are not rounded to 8 bits;
                                              or NULL */
    int64_t word_count; /* at least 8, at most V: the words with text, the first of V. The others are never chosen, but
                           count in log-probabilities */
} patchcaption_gpt2;

/* Where a step finds and leaves what it attends to. */
typedef struct patchcaption_gpt2_cache {
    int64_t position_count;     /* P, at least 1, at most 2**20 */
    const uint8_t *is_attended; /* (P,) or (R, P): 1 for each position of the cache that is attended to, else 0 */
    int64_t attended_stride;    /* from one row to the next: 0, or at least P */
    const float *const *past;   /* for each block its keys and its values, (R, H, P, d) each */
    float *const *present;      /* for each block the step's own keys and values, (R, H, d) each */
} patchcaption_gpt2_cache;

/* What a step returns: the likeliest words and their log-probabilities, (R,) each; or, where `all_log_probs` is not
 * NULL, those of all words with text, (R, word_count), and nothing else.
 *
 * The likeliest word is that by logits in float32, which are computed for the 8 likeliest; in its log-probability the
 * other words' are rounded.
 */
typedef struct patchcaption_gpt2_result {
    int64_t *words;
    float *log_probs;
    float *all_log_probs;
} patchcaption_gpt2_result;

/* Computes one position of each row.
 *
 * inputs (R, E): embeddings of words and positions.
 * vectors (R, D): their projection is added to the inputs; NULL for none.
 * row_count: R, at least 1, at most 2**20.
 * threads: the most threads to use; 0 or less for one per hardware thread.
 */
PATCHCAPTION_API int32_t patchcaption_gpt2_step(const patchcaption_gpt2 *gpt2, const float *inputs,
                                                const float *vectors, int64_t row_count,
                                                const patchcaption_gpt2_cache *cache, int32_t threads,
                                                const patchcaption_gpt2_result *result);

#ifdef __cplusplus
}
#endif
#endif
