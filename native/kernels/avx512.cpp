// AVX-512 as servers have it since 2017.
#define LANES 16
#include <immintrin.h>

#include <cstdint>

namespace {
inline __m512 halves_to_floats(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
inline __m512 bytes_to_floats(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}
}  // namespace
#define HALVES_TO_FLOATS halves_to_floats
#define BYTES_TO_FLOATS bytes_to_floats
#include "simd_scan.h"

namespace patchcaption {
namespace {
bool is_usable() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
}  // namespace
const Variant kAvx512 = {"avx512", 0, is_usable, portable_scratch_bytes, portable_scan, portable_logits, portable_add};
}  // namespace patchcaption
