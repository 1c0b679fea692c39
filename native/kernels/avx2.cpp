// AVX2 with FMA and F16C: x86 since 2013.
#include <immintrin.h>

#include <cstdint>

namespace {
inline __m256 load_fp16_avx2(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
inline __m256 load_int8_avx2(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
}
}  // namespace
#define LANES 8
#define LOAD_FP16 load_fp16_avx2
#define LOAD_INT8 load_int8_avx2
#include "simd_scan.h"

namespace patchcaption {
namespace {
bool is_supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
}  // namespace
const Variant kAvx2 = {"avx2", 0, is_supported, simd_scratch_bytes, simd_scan, simd_logits, simd_accumulate};
}  // namespace patchcaption
