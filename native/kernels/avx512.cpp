// AVX-512 as servers have it since 2017.
#include "simd_avx512.h"

namespace patchcaption {
namespace {
bool is_usable() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
}  // namespace
const Variant kAvx512 = {"avx512", 0, is_usable, portable_scratch_bytes, portable_scan, portable_logits, portable_add};
}  // namespace patchcaption
