// int8_scan.h for AVX-512 with VNNI, as avx512vnni.cpp and avx512bf16.cpp use it.
#pragma once

#include "simd_avx512.h"

namespace {
// Leaves bytes of rows in their 128-bit lanes: lane l of fours[c] has the columns 16 * l + 4 * c + (0, 1, 2, 3).
inline void interleave_avx512(const __m512i rows[4], __m512i fours[4]) {
    const __m512i low01 = _mm512_unpacklo_epi8(rows[0], rows[1]), high01 = _mm512_unpackhi_epi8(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(rows[2], rows[3]), high23 = _mm512_unpackhi_epi8(rows[2], rows[3]);
    fours[0] = _mm512_unpacklo_epi16(low01, low23);
    fours[1] = _mm512_unpackhi_epi16(low01, low23);
    fours[2] = _mm512_unpacklo_epi16(high01, high23);
    fours[3] = _mm512_unpackhi_epi16(high01, high23);
}

// Transposes the 4 x 4 lanes.
inline void order_columns_avx512(__m512i sums[4]) {
    const __m512i even01 = _mm512_shuffle_i32x4(sums[0], sums[1], 0x88),
                  odd01 = _mm512_shuffle_i32x4(sums[0], sums[1], 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(sums[2], sums[3], 0x88),
                  odd23 = _mm512_shuffle_i32x4(sums[2], sums[3], 0xdd);
    sums[0] = _mm512_shuffle_i32x4(even01, even23, 0x88);
    sums[1] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
    sums[2] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
    sums[3] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
}
}  // namespace

#define ROWS_ARE_BIASED 1
#define DOT_ROWS(sums, rows, queries) (Ints) _mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(rows), (__m512i)(queries))
#define DOT_WEIGHTS(sums, weights, rows) \
    (Ints) _mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(weights), (__m512i)(rows))
#define SUM_INT_LANES(sums) _mm512_reduce_add_epi32((__m512i)(sums))
#define INTERLEAVE(rows, fours) interleave_avx512((const __m512i *)(rows), (__m512i *)(fours))
#define ORDER_COLUMNS(sums) order_columns_avx512((__m512i *)(sums))
#include "int8_scan.h"
