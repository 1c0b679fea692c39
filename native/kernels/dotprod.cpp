// 64-bit Arm with dot products: Cortex-A55 and A75 since 2017, Jetson Orin, Raspberry Pi 5, Graviton 2.
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "int8_neon.h"

namespace patchcaption {
namespace {
bool is_supported() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
}  // namespace
const Variant kDotprod = {"dotprod", 0, is_supported, int8_scratch_bytes, int8_scan, simd_refine};
}  // namespace patchcaption
