#include "patchcaption/common.h"

int32_t patchcaption_abi(void) { return PATCHCAPTION_ABI_VERSION; }
