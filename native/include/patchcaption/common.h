/* What the interfaces of the native library share: its version, the statuses that calls return, and number formats. */
#ifndef PATCHCAPTION_COMMON_H
#define PATCHCAPTION_COMMON_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PATCHCAPTION_ABI_VERSION 6
#define PATCHCAPTION_API __attribute__((visibility("default")))

enum patchcaption_storage {
    PATCHCAPTION_FP32 = 0,
    PATCHCAPTION_FP16 = 1,
    PATCHCAPTION_BF16 = 2,
    PATCHCAPTION_INT8 = 3
};

enum patchcaption_status {
    PATCHCAPTION_OK = 0,
    PATCHCAPTION_INVALID_ARGUMENT = 1, /* a pointer is NULL, or a number is out of range */
    PATCHCAPTION_OUT_OF_MEMORY = 2,
    PATCHCAPTION_UNSUPPORTED_VARIANT = 3, /* an unknown name, or a variant that this CPU does not support */
    PATCHCAPTION_UNREADABLE_FILE = 4      /* the residual's file is truncated or cannot be read */
};

/* Returns the PATCHCAPTION_ABI_VERSION that the library was built with: compare it with the header's before any other
 * call. This function stays the same in every version.
 */
PATCHCAPTION_API int32_t patchcaption_abi(void);

#ifdef __cplusplus
}
#endif
#endif
