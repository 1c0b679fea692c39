// AVX2 with FMA and F16C: x86 since 2013.
#include "simd_avx2.h"

namespace patchcaption {
namespace {
bool is_supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
}  // namespace
const Variant kAvx2 = {"avx2", 0, is_supported, simd_scratch_bytes, simd_scan, simd_refine};
}  // namespace patchcaption
