// int8_scan.h for AVX-512 with VNNI, as avx512vnni.cpp and avx512bf16.cpp use it.
#pragma once

#include "simd_avx512.h"

namespace {
inline __m512i load_four_avx512(const uint8_t *rows, int64_t stride) {
    const auto row = [&](int64_t r) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows + r * stride)); };
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, row(2), 2), row(3), 3);
}

// The four bytes of each row and column group go to one 128-bit lane, and change their order there.
inline __m512i interleave_avx512(const uint8_t *rows, int64_t stride) {
    const __m512i gathered = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i transposed =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(gathered, load_four_avx512(rows, stride)), transposed);
}
}  // namespace

#define ROWS_ARE_BIASED 1
#define DOT_ROWS(sums, rows, queries) (Ints) _mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(rows), (__m512i)(queries))
#define DOT_WEIGHTS(sums, weights, rows) (Ints) _mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(weights), (__m512i)(rows))
#define SUM_INT_LANES(sums) _mm512_reduce_add_epi32((__m512i)(sums))
#define INTERLEAVE(rows, stride) (Bytes) interleave_avx512(rows, stride)
#include "int8_scan.h"
