// AVX2 with AVX-VNNI: Intel since Alder Lake, N-series and Core Ultra among them, which have no AVX-512; AMD since
// Zen 5.
//
// Compiled for AVX512-VNNI instead, as an option of CMakeLists.txt does for tests, it is the same code in another
// encoding.
#include <cpuid.h>

#include "simd_avx2.h"

namespace {
#ifdef __AVXVNNI__
inline __m256i dot_avxvnni(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    return _mm256_dpbusd_avx_epi32(sums, unsigned_bytes, signed_bytes);
}
#else
inline __m256i dot_avxvnni(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    return _mm256_dpbusd_epi32(sums, unsigned_bytes, signed_bytes);
}
#endif

inline int32_t sum_int_lanes_avx2(__m256i sums) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// Leaves bytes of rows in their 128-bit lanes: lane l of fours[c] has the columns 16 * l + 4 * c + (0, 1, 2, 3).
inline void interleave_avx2(const __m256i rows[4], __m256i fours[4]) {
    const __m256i low01 = _mm256_unpacklo_epi8(rows[0], rows[1]), high01 = _mm256_unpackhi_epi8(rows[0], rows[1]);
    const __m256i low23 = _mm256_unpacklo_epi8(rows[2], rows[3]), high23 = _mm256_unpackhi_epi8(rows[2], rows[3]);
    fours[0] = _mm256_unpacklo_epi16(low01, low23);
    fours[1] = _mm256_unpackhi_epi16(low01, low23);
    fours[2] = _mm256_unpacklo_epi16(high01, high23);
    fours[3] = _mm256_unpackhi_epi16(high01, high23);
}

// Puts the first lanes before the second ones.
inline void order_columns_avx2(__m256i sums[4]) {
    const __m256i old[4] = {sums[0], sums[1], sums[2], sums[3]};
    sums[0] = _mm256_permute2x128_si256(old[0], old[1], 0x20);
    sums[1] = _mm256_permute2x128_si256(old[2], old[3], 0x20);
    sums[2] = _mm256_permute2x128_si256(old[0], old[1], 0x31);
    sums[3] = _mm256_permute2x128_si256(old[2], old[3], 0x31);
}
}  // namespace

#define ROWS_ARE_BIASED 1
#define DOT_ROWS(sums, rows, queries) (Ints) dot_avxvnni((__m256i)(sums), (__m256i)(rows), (__m256i)(queries))
#define DOT_WEIGHTS(sums, weights, rows) (Ints) dot_avxvnni((__m256i)(sums), (__m256i)(weights), (__m256i)(rows))
#define SUM_INT_LANES(sums) sum_int_lanes_avx2((__m256i)(sums))
#define INTERLEAVE(rows, fours) interleave_avx2((const __m256i *)(rows), (__m256i *)(fours))
#define ORDER_COLUMNS(sums) order_columns_avx2((__m256i *)(sums))
#include "int8_scan.h"

namespace patchcaption {
namespace {
bool is_supported() {
#ifdef __AVXVNNI__
    unsigned a, b, c, d;
    const bool has_vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
    const bool has_vnni = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
    return has_vnni && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
}  // namespace
const Variant kAvxVnni = {"avxvnni", 0, is_supported, int8_scratch_bytes, int8_scan, simd_refine};
}  // namespace patchcaption
