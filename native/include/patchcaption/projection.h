/* Projection of query vectors onto a memory bank: softmax(cosine / temperature) @ rows, on the CPU.
 *
 * Shapes: R queries, M memory rows, D width. All arrays are dense, row-major and aligned as their elements are.
 *
 *     const float rows[] = {3, 0, 0, 2};                     // M = 2, D = 2
 *     const float inverse_norms[] = {1 / 3.0f, 1 / 2.0f};
 *     const float unit_query[] = {0.6f, 0.8f};               // R = 1
 *     float weighted_sum[2];                                 // will be {0.358, 1.762}
 *     patchcaption_bank bank = {.rows = rows, .inverse_norms = inverse_norms, .row_count = 2, .width = 2,
 *                               .storage = PATCHCAPTION_FP32, .residual_fd = -1};
 *     int32_t status = patchcaption_project(&bank, unit_query, 1, 0.1f, 0, NULL, weighted_sum);
 *     if (status != PATCHCAPTION_OK) fprintf(stderr, "projection failed: status %d\n", status);
 *
 * Memory: the caller owns all arrays and the file descriptor, and keeps them valid and unchanged during a call. Only
 * the results are written, and no pointer is kept. What a call allocates it frees before it returns: about
 * 4 * R * (3 * D + 4 * refine_top_k + 512) + 700 * D bytes per thread, 8 * R * refine_top_k, and where residuals are
 * read from a file 4096 * D more per thread.
 *
 * Threads: every function may be called from any number of threads at once, also on the same bank. Each call starts and
 * joins its own threads.
 *
 * Errors: both projections return an enum patchcaption_status; unless it is PATCHCAPTION_OK the results are
 * unspecified. Values are not checked: queries and rows must be finite.
 */
#ifndef PATCHCAPTION_PROJECTION_H
#define PATCHCAPTION_PROJECTION_H

#include <stdint.h>

#include "patchcaption/common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A memory bank. Row m is rows[m] * scales[m] + residual[m] * residual_scales[m]. */
typedef struct patchcaption_bank {
    const void *rows;             /* (M, D) in `storage` */
    const float *scales;          /* (M,) at least 0, or NULL for ones */
    const int8_t *residual;       /* (M, D) quantization error of `rows`, or NULL: read from `residual_fd`, or none */
    const float *residual_scales; /* (M,) at least 0, or NULL if the bank has no residual */
    const float *inverse_norms;   /* (M,) 1 / length of each row */
    const float *squared_errors;  /* (M,) expected square of the length of each row's residual, or NULL for zeros */
    int64_t row_count;            /* M, 1 to 2**32 - 1 */
    int64_t width;                /* D, 1 to 2**20 */
    int32_t storage;              /* enum patchcaption_storage */
    int32_t residual_fd;          /* file descriptor to read the residual from on demand, which keeps it out of memory;
                                     -1 for none. Its position is neither used nor moved. */
    int64_t residual_offset;      /* byte offset of the residual in that file */
} patchcaption_bank;

/* Returns the name of a kernel variant that this CPU supports, or NULL if there are no more. Index 0 is the fastest.
 * Names are "amx", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2" and "baseline" on x86-64, "i8mm", "dotprod"
 * and "neon" on 64-bit Arm; the strings are static.
 */
PATCHCAPTION_API const char *patchcaption_variant(int32_t index);

/* Projects with the residual added to every row, in one pass over the bank.
 *
 * unit_queries (R, D): vectors of length 1. A zero vector gives the mean of the rows.
 * query_count: R, 0 to 2**24.
 * temperature: above 0.
 * threads: the most threads to use; 0 or less for one per hardware thread.
 * variant: a name from patchcaption_variant, or NULL for the fastest one for so many queries.
 * weighted_sum (R, D): the result, softmax(cosine / temperature) @ rows.
 */
PATCHCAPTION_API int32_t patchcaption_project(const patchcaption_bank *bank, const float *unit_queries,
                                              int64_t query_count, float temperature, int32_t threads,
                                              const char *variant, float *weighted_sum);

/* Projects with the residual added to rows of the highest cosines only, per query; the other rows are used as stored.
 * Reads the residual of no other row. Arguments as above, and:
 *
 * refine_top_k: the most rows whose residuals are added, at least 0; M or more for all rows.
 * max_error: at least 0; the error, as `unrefined_error` has it, that the other rows may leave. Where fewer rows than
 * refine_top_k leave less, only about as many are refined.
 * unrefined_error (R,): how far the residuals of the other rows are expected to move the weighted sum, relative to its
 * length, if they have no direction in common and are known by their lengths alone: the root of the sum over those rows
 * of weight**2 * squared error * (1 + 1 / (D * temperature**2)), for rows and their weights.
 * unrefined_drift (R,): the length of the other rows' part of the weighted sum, across the sum's direction and relative
 * to its length. Rounding makes the weights of these rows larger, on average by half the variance of their logits.
 */
PATCHCAPTION_API int32_t patchcaption_project_with_refinement(const patchcaption_bank *bank, const float *unit_queries,
                                                              int64_t query_count, float temperature,
                                                              int64_t refine_top_k, float max_error, int32_t threads,
                                                              const char *variant, float *weighted_sum,
                                                              float *unrefined_error, float *unrefined_drift);

#ifdef __cplusplus
}
#endif
#endif
