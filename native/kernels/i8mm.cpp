// 64-bit Arm with products of int8 matrices: Graviton 3, Grace, Cortex-A510 and A710 since 2021. They give the queries'
// sums, two rows by two queries at a time; weights are multiplied as in dotprod.cpp.
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include <cstdint>

namespace {
// Adds the products of four rows by 16 queries over 64 columns to totals[2 * i + j][v] (2, 2): rows 2 * i + (0, 1) by
// queries 4 * v + 2 * j + (0, 1). Queries are (16, 16, 4) as int8_scan.h places them.
inline void dot_tile_i8mm(int32x4_t totals[4][4], const uint8_t *rows, int64_t stride, const int8_t *queries) {
    const auto row_pair = [&](int64_t row, int64_t d) {
        const int8_t *from = reinterpret_cast<const int8_t *>(rows) + row * stride + d;
        return vcombine_s8(vld1_s8(from), vld1_s8(from + stride));
    };
    for (int64_t d = 0; d < 64; d += 8) {
        const int8x16_t pairs[2] = {row_pair(0, d), row_pair(2, d)};
        for (int64_t v = 0; v < 4; ++v) {
            const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(queries + d * 16 + v * 16));
            const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(queries + d * 16 + 64 + v * 16));
            const int8x16_t query_pairs[2] = {vreinterpretq_s8_s32(vzip1q_s32(first, second)),
                                              vreinterpretq_s8_s32(vzip2q_s32(first, second))};
            for (int i = 0; i < 2; ++i) {
                for (int j = 0; j < 2; ++j) {
                    totals[2 * i + j][v] = vmmlaq_s32(totals[2 * i + j][v], pairs[i], query_pairs[j]);
                }
            }
        }
    }
}

// Reorders the totals to four rows of 16 queries.
inline void order_tile_i8mm(int32x4_t totals[4][4]) {
    for (int i = 0; i < 4; i += 2) {
        for (int v = 0; v < 4; ++v) {
            const int64x2_t first = vreinterpretq_s64_s32(totals[i][v]),
                            second = vreinterpretq_s64_s32(totals[i + 1][v]);
            totals[i][v] = vreinterpretq_s32_s64(vzip1q_s64(first, second));
            totals[i + 1][v] = vreinterpretq_s32_s64(vzip2q_s64(first, second));
        }
    }
}
}  // namespace

#define DOT_TILE(totals, rows, stride, queries) dot_tile_i8mm((int32x4_t(*)[4])(totals), rows, stride, queries)
#define ORDER_TILE(totals) order_tile_i8mm((int32x4_t(*)[4])(totals))
#include "int8_neon.h"

namespace patchcaption {
namespace {
bool is_supported() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP2) & HWCAP2_I8MM); }
}  // namespace
const Variant kI8mm = {"i8mm", 0, is_supported, int8_scratch_bytes, int8_scan, simd_refine};
}  // namespace patchcaption
