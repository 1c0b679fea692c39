// AVX2 with FMA and F16C: x86 since 2013.
#define LANES 8
#include <immintrin.h>

#include <cstdint>

namespace {
inline __m256 halves_to_floats(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
inline __m256 bytes_to_floats(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
}
}  // namespace
#define HALVES_TO_FLOATS halves_to_floats
#define BYTES_TO_FLOATS bytes_to_floats
#include "simd_scan.h"

namespace patchcaption {
namespace {
bool is_usable() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
}  // namespace
const Variant kAvx2 = {"avx2", 0, is_usable, portable_scratch_bytes, portable_scan, portable_logits, portable_add};
}  // namespace patchcaption
