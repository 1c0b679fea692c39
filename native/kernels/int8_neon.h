// int8_scan.h for 64-bit Arm with dot products, as dotprod.cpp and i8mm.cpp use it.
#pragma once

#include "simd_neon.h"

namespace {
inline void interleave_neon(const uint8x16_t rows[4], uint8x16_t fours[4]) {
    const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(rows[0], rows[1]));
    const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(rows[0], rows[1]));
    const uint16x8_t low23 = vreinterpretq_u16_u8(vzip1q_u8(rows[2], rows[3]));
    const uint16x8_t high23 = vreinterpretq_u16_u8(vzip2q_u8(rows[2], rows[3]));
    fours[0] = vreinterpretq_u8_u16(vzip1q_u16(low01, low23));
    fours[1] = vreinterpretq_u8_u16(vzip2q_u16(low01, low23));
    fours[2] = vreinterpretq_u8_u16(vzip1q_u16(high01, high23));
    fours[3] = vreinterpretq_u8_u16(vzip2q_u16(high01, high23));
}
}  // namespace

// Both products are of numbers with like signs, so weights are multiplied by rows + 128.
#define ROWS_ARE_BIASED 0
#define DOT_ROWS(sums, rows, queries) (Ints) vdotq_s32((int32x4_t)(sums), (int8x16_t)(rows), (int8x16_t)(queries))
#define DOT_WEIGHTS(sums, weights, rows) (Ints) vdotq_u32((uint32x4_t)(sums), (uint8x16_t)(weights), (uint8x16_t)(rows))
#define SUM_INT_LANES(sums) vaddvq_s32((int32x4_t)(sums))
#define INTERLEAVE(rows, fours) interleave_neon((const uint8x16_t *)(rows), (uint8x16_t *)(fours))
#define ORDER_COLUMNS(sums)  // they are in order
#include "int8_scan.h"
