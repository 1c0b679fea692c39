// AVX-512 with VNNI: Xeon since 2019, AMD since Zen 4.
#include "int8_avx512.h"

namespace patchcaption {
namespace {
bool is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
}  // namespace
const Variant kAvx512Vnni = {"avx512vnni", 0,           is_supported,   int8_scratch_bytes,
                             int8_scan,    simd_logits, simd_accumulate};
}  // namespace patchcaption
