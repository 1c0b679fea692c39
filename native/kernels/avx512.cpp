// AVX-512 with BW, VL and DQ: x86 servers since 2017.
#include "simd_avx512.h"

namespace patchcaption {
namespace {
bool is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
}  // namespace
const Variant kAvx512 = {"avx512", 0, is_supported, simd_scratch_bytes, simd_scan, simd_logits, simd_accumulate};
}  // namespace patchcaption
