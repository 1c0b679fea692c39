/* The native kernels of patchcaption, by their C interface.
 *
 * Shapes: R regions, M memory rows, D width. All arrays are dense and row-major; none is written but the results.
 */
#ifndef PATCHCAPTION_H
#define PATCHCAPTION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PATCHCAPTION_ABI 1
#define PATCHCAPTION_API __attribute__((visibility("default")))

enum patchcaption_storage {
    PATCHCAPTION_FP32 = 0,
    PATCHCAPTION_FP16 = 1,
    PATCHCAPTION_BF16 = 2,
    PATCHCAPTION_INT8 = 3
};

enum patchcaption_status {
    PATCHCAPTION_OK = 0,
    PATCHCAPTION_BAD_ARGUMENT = 1,
    PATCHCAPTION_OUT_OF_MEMORY = 2,
    PATCHCAPTION_NO_SUCH_VARIANT = 3,
    PATCHCAPTION_UNREADABLE_FILE = 4
};

/* A memory bank. Row m is rows[m] * scales[m] + fine[m] * fine_scales[m]. */
typedef struct patchcaption_bank {
    const void *rows;           /* (M, D) in `storage` */
    const float *scales;        /* (M,), or NULL for ones */
    const int8_t *fine;         /* (M, D) what rounding to `storage` left; NULL for nothing, or where it is in a file */
    const float *fine_scales;   /* (M,), or NULL for nothing */
    const float *inverse_norms; /* (M,) one over the length of each row */
    int64_t row_count;          /* M */
    int64_t width;              /* D */
    int32_t storage;            /* enum patchcaption_storage */
    int32_t fine_file;          /* a descriptor to read `fine` from where it is needed, so that it is never resident;
                                   -1 for none */
    int64_t fine_offset;        /* where `fine` begins in that file */
} patchcaption_bank;

PATCHCAPTION_API int32_t patchcaption_abi(void);

/* The variants that this machine can run, best first, by name ("amx", "avx512", "avx2", "baseline"); NULL past the end.
 */
PATCHCAPTION_API const char *patchcaption_variant(int32_t place);

/* softmax(cosine / temperature) @ rows for R directions of length 1, in one pass over all that is known of the rows.
 *
 * directions (R, D) -> mixed (R, D). variant: a name from patchcaption_variant, or NULL for the best.
 * Returns an enum patchcaption_status.
 */
PATCHCAPTION_API int32_t patchcaption_project(const patchcaption_bank *bank, const float *directions, int64_t regions,
                                              float temperature, int32_t threads, const char *variant, float *mixed);

/* The same without `fine` but for the `best` rows of each region, which are computed again with it.
 *
 * tail (R,): the sum of weight times row length over all other rows, as a share of the length of `mixed`: so much of
 * the result may be wrong by what rounding did to rows and their weights.
 */
PATCHCAPTION_API int32_t patchcaption_project_best(const patchcaption_bank *bank, const float *directions,
                                                   int64_t regions, float temperature, int64_t best, int32_t threads,
                                                   const char *variant, float *mixed, float *tail);

#ifdef __cplusplus
}
#endif
#endif
