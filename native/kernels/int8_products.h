// Products of int8 rows by queries, summed in 32 bits. A variant defines what simd_scan.h asks for, and
//
//   DOT_ROWS(sums, rows, queries)     each of LANES int32 sums + the products of four bytes of `rows`, int8 + kRowBias,
//                                     by four of `queries`, int8
//   DOT_WEIGHTS(sums, weights, rows)  likewise of `weights`, uint8, by `rows`, int8 + kWeightedRowBias
//   ROWS_ARE_BIASED                   1 if kRowBias is 128 and kWeightedRowBias 0; 0 if it is the other way round
//   SUM_INT_LANES(sums)               the sum of LANES int32
//   INTERLEAVE(rows, fours)           fours[4] of the bytes of rows[4]: in each four of bytes one of each row, from one
//                                     column; the columns in any order
//   ORDER_COLUMNS(sums)               reorders LANES int32 of each of sums[4] from that order to the columns' own
//
// and if it has instructions for them, DOT_TILE to replace the loop of dot_tile, with the totals in any order, and
// ORDER_TILE to reorder them; kRowBias is then 0.
//
// A query is quantized to a high and a low int8 part.
//
// Shapes: as in scan_interface.h; W is D padded to kInt8WidthPadding, G = padded R / 16 the groups of queries.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "simd_scan.h"

namespace patchcaption {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(4 * LANES)));

constexpr int64_t kInt8WidthPadding = 64;
constexpr int64_t kMaxInt8Width = 1 << 16;  // 2**16 products of 255 * 127 fit an int32
// Rows that are summed together: whole tiles, and no more than fit an int32 times 65535 times a byte of a row.
constexpr int64_t kGathered = LANES == 16 ? 256 : LANES == 8 ? 240 : 128;
constexpr int64_t kFewQueries = 4;  // so many are multiplied along D, more side by side in the lanes
constexpr int64_t kTileRows = LANES == 16 ? 16 : LANES == 8 ? 6 : 4;  // for 32 vector registers, or the 16 of AVX2
constexpr float kMaxInverseTemperature = 200;  // above, 15 bits of a query are too few for logits within 1e-3
constexpr float kLowStep = 1 / 254.0f;         // of a query's low part, relative to its high part's
constexpr float kMaxRowLength = 1.25f;  // of a stored row, relative to the length that it had: rounding adds far less
constexpr int64_t kSpareRows = 8;       // memory for the last tile of rows, which may be no whole one
constexpr int64_t kGatheredSums = kGathered + kSpareRows;
constexpr int64_t kQueryVectors = kQueryPadding / LANES;
constexpr int32_t kRowBias = ROWS_ARE_BIASED ? 128 : 0;
constexpr int32_t kWeightedRowBias = 128 - kRowBias;

// The scratch memory of one thread.
struct Int8Scratch {
    int64_t width;             // W
    int8_t *queries[2];        // (G, 16, W) high and low part; side by side: (G, W / 4, 16, 4)
    int32_t *query_biases[2];  // (padded R,) what kRowBias adds to a sum of each part
    float *query_scales;       // (padded R,) of the high part; the low part's is 1/254 of it
    float *low_norms;          // (padded R,) length of what the high part leaves of a query
    uint8_t *block;            // (kBlock, W) rows + kRowBias
    uint8_t *rows;             // (kGathered, W) likewise
    uint8_t *residuals;        // (kGathered, W) likewise
    int32_t *residual_sums;    // (kGathered, 16) of the high parts
    float *weights;            // (kGathered, 16)
    uint8_t *row_fours;        // (kGathered / 4, 4 * LANES, 4) some columns of rows or residuals + kWeightedRowBias
    uint8_t *weight_fours[2];  // (kGathered / 4, 16, 4) high and low part
    // Of each group:
    uint32_t *gathered;  // (G, kGathered) numbers of the rows that are gathered
    // (G, kGatheredSums, 16) their high and low sums; the low ones of many queries not before the end
    int32_t *gathered_sums[2];
    int64_t *gathered_counts;  // (G,)
};

inline int64_t int8_width(const QueryBatch &batch) {
    return (batch.padded_width + kInt8WidthPadding - 1) / kInt8WidthPadding * kInt8WidthPadding;
}

// Assigns addresses from `memory` on, and returns how many bytes they take.
int64_t partition_int8_scratch(const QueryBatch &batch, char *memory, Int8Scratch &scratch) {
    char *next = memory;
    const auto take = [&next](auto *&array, int64_t count) {
        array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(next);
        next += (count * static_cast<int64_t>(sizeof *array) + 63) / 64 * 64;
    };
    const int64_t width = scratch.width = int8_width(batch), queries = batch.padded_count;
    for (int8_t *&part : scratch.queries) take(part, queries * width);
    for (int32_t *&biases : scratch.query_biases) take(biases, queries);
    take(scratch.query_scales, queries);
    take(scratch.low_norms, queries);
    take(scratch.block, (kBlock + kSpareRows) * width);
    take(scratch.rows, kGathered * width);
    take(scratch.residuals, kGathered * width);
    take(scratch.residual_sums, kGathered * kQueryPadding);
    take(scratch.weights, kGathered * kQueryPadding);
    take(scratch.row_fours, kGathered * 4 * LANES);
    for (uint8_t *&part : scratch.weight_fours) take(part, kGathered * kQueryPadding);
    take(scratch.gathered, queries / kQueryPadding * kGathered);
    for (int32_t *&sums : scratch.gathered_sums) take(sums, queries * kGatheredSums);
    take(scratch.gathered_counts, queries / kQueryPadding);
    return next - memory;
}

inline Ints load_ints(const int32_t *from) { return load<Ints>(from); }

inline Bytes load_bytes(const void *from) { return load<Bytes>(static_cast<const char *>(from)); }

inline Bytes broadcast_byte(int32_t byte) { return Bytes{} + static_cast<uint8_t>(byte); }

inline Bytes broadcast_four(const void *bytes) {
    int32_t four;
    std::memcpy(&four, bytes, sizeof four);
    return (Bytes)(Ints{} + four);
}

inline Floats to_floats(const int32_t *sums) { return __builtin_convertvector(load_ints(sums), Floats); }

inline int64_t queries_of_group(const QueryBatch &batch, int64_t group) {
    const int64_t left = batch.count - group * kQueryPadding;
    return left < kQueryPadding ? left : kQueryPadding;
}

inline bool has_few_queries(const QueryBatch &batch, int64_t group) {
    return queries_of_group(batch, group) <= kFewQueries;
}

// Quantizes the queries and places their bytes as the products want them.
void quantize_queries(const QueryBatch &batch, const Int8Scratch &scratch) {
    for (int64_t query = 0; query < batch.count; ++query) {
        const float *from = batch.unit_queries + query * batch.padded_width;
        const int64_t group = query / kQueryPadding, column = query % kQueryPadding;
        const bool in_lanes = !has_few_queries(batch, group);
        float largest = 1e-30f, left_squares = 0;
        for (int64_t d = 0; d < batch.padded_width; ++d) largest = std::fmax(largest, std::fabs(from[d]));
        const float scale = largest / 127, steps_per_unit = 1 / scale;
        int32_t part_sums[2] = {};
        for (int64_t d = 0; d < scratch.width; ++d) {
            const float steps = d < batch.padded_width ? from[d] * steps_per_unit : 0, high = std::nearbyint(steps);
            const int64_t offset =
                group * kQueryPadding * scratch.width +
                (in_lanes ? (d / 4 * kQueryPadding + column) * 4 + d % 4 : column * scratch.width + d);
            const int8_t parts[2] = {static_cast<int8_t>(high),
                                     static_cast<int8_t>(std::nearbyint((steps - high) / kLowStep))};
            left_squares += (steps - high) * (steps - high);
            for (int part = 0; part < 2; ++part) {
                scratch.queries[part][offset] = parts[part];
                part_sums[part] += parts[part];
            }
        }
        scratch.query_scales[query] = scale;
        scratch.low_norms[query] = std::sqrt(left_squares) * scale;
        for (int part = 0; part < 2; ++part) scratch.query_biases[part][query] = -kRowBias * part_sums[part];
    }
}

// Copies a row (D,) to `out` (W,) with kRowBias added, zero where padded.
inline void copy_row(const int8_t *row, int64_t width, int64_t padded_width, uint8_t *out) {
    const Bytes bias = broadcast_byte(kRowBias);
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) {
        const Bytes biased = load_bytes(row + d) ^ bias;
        std::memcpy(out + d, &biased, sizeof biased);
    }
    for (; d < width; ++d) out[d] = static_cast<uint8_t>(row[d]) ^ static_cast<uint8_t>(kRowBias);
    for (; d < padded_width; ++d) out[d] = kRowBias;
}

// Rows that will be read next, fetched into the second-level cache a little at a time while others are multiplied.
struct NextRows {
    const int8_t *rows;  // NULL if there are none
    int64_t width;

    // 64 bytes of each of some rows.
    void fetch(int64_t first_row, int64_t rows_count, int64_t offset) const {
        if (!rows) return;
        const int8_t *from = rows + first_row * width + offset;
        for (int64_t row = 0; row < rows_count; ++row) __builtin_prefetch(from + row * width, 0, 2);
    }
};

// Gathered rows of W bytes each.
struct RowBytes {
    const uint8_t *rows[kGathered + 4];  // past the last repeated up to whole fours
    bool are_biased;                     // by kRowBias
};

// Adds to totals the products of kTileRows rows by 16 queries (16, 16, 4) over 64 columns. Adds kRowBias to rows that
// do not have it.
template <bool kAreBiased>
inline void dot_tile(Ints totals[kTileRows][kQueryVectors], const uint8_t *rows, int64_t stride,
                     const int8_t *queries) {
#ifdef DOT_TILE
    DOT_TILE(totals, rows, stride, queries);
#else
    for (int64_t d = 0; d < 64; d += 4) {
        Bytes query_bytes[kQueryVectors];
        for (int64_t v = 0; v < kQueryVectors; ++v) query_bytes[v] = load_bytes(queries + (d * 4 + v * LANES) * 4);
#pragma GCC unroll 16
        for (int64_t m = 0; m < kTileRows; ++m) {
            Bytes four = broadcast_four(rows + m * stride + d);
            if constexpr (!kAreBiased) four ^= broadcast_byte(kRowBias);
            for (int64_t v = 0; v < kQueryVectors; ++v) totals[m][v] = DOT_ROWS(totals[m][v], four, query_bytes[v]);
        }
    }
#endif
}

// sums (count, 16) of one part of the queries of a group, side by side, with rows (count, W).
template <bool kAreBiased>
void multiply_in_lanes(const Int8Scratch &scratch, int64_t group, int part, const uint8_t *rows, int64_t count,
                       const NextRows &next, int32_t *sums) {
    const int64_t width = scratch.width;
    const int8_t *queries = scratch.queries[part] + group * kQueryPadding * width;
    const int32_t *biases = scratch.query_biases[part] + group * kQueryPadding;
    for (int64_t row = 0; row < count; row += kTileRows) {
        Ints totals[kTileRows][kQueryVectors];
        for (int64_t m = 0; m < kTileRows; ++m) {
            for (int64_t v = 0; v < kQueryVectors; ++v) totals[m][v] = load_ints(biases + v * LANES);
        }
        for (int64_t d = 0; d < width; d += 64) {
            next.fetch(row, kTileRows, d);
            dot_tile<kAreBiased>(totals, rows + row * width + d, width, queries + d * kQueryPadding);
        }
#ifdef ORDER_TILE
        ORDER_TILE(totals);
#endif
        std::memcpy(sums + row * kQueryPadding, totals, sizeof totals);
    }
}

// sums (count, 16) of the high, or of both parts of the first kQueries of a group with the rows at row_at(index), one
// query after another along D.
template <int kParts, int kQueries, typename RowAt>
void multiply_along_width(const Int8Scratch &scratch, int64_t group, RowAt row_at, bool are_biased, int64_t count,
                          int32_t *const sums[kParts]) {
    const Bytes bias = broadcast_byte(are_biased ? 0 : kRowBias);
    const int64_t width = scratch.width, first_query = group * kQueryPadding;
    for (int64_t index = 0; index < count; ++index) {  // one at a time: memory is fastest in its order
        const uint8_t *row = row_at(index);
        Ints totals[kParts][kQueries] = {};
        for (int64_t d = 0; d < width; d += 4 * LANES) {
            const Bytes row_bytes = load_bytes(row + d) ^ bias;
            for (int part = 0; part < kParts; ++part) {
                for (int q = 0; q < kQueries; ++q) {
                    const Bytes query_bytes = load_bytes(scratch.queries[part] + (first_query + q) * width + d);
                    totals[part][q] = DOT_ROWS(totals[part][q], row_bytes, query_bytes);
                }
            }
        }
        for (int part = 0; part < kParts; ++part) {
            int32_t *row_sums = sums[part] + index * kQueryPadding;
            for (int q = 0; q < kQueries; ++q) {
                row_sums[q] = SUM_INT_LANES(totals[part][q]) + scratch.query_biases[part][first_query + q];
            }
            for (int q = kQueries; q < kQueryPadding; ++q) row_sums[q] = 0;
        }
    }
}

template <int kParts, typename RowAt>
void multiply_few(const QueryBatch &batch, const Int8Scratch &scratch, int64_t group, RowAt row_at, bool are_biased,
                  int64_t count, int32_t *const sums[kParts]) {
    static_assert(kFewQueries == 4);
    switch (queries_of_group(batch, group)) {
        case 1: return multiply_along_width<kParts, 1>(scratch, group, row_at, are_biased, count, sums);
        case 2: return multiply_along_width<kParts, 2>(scratch, group, row_at, are_biased, count, sums);
        case 3: return multiply_along_width<kParts, 3>(scratch, group, row_at, are_biased, count, sums);
        default: return multiply_along_width<kParts, 4>(scratch, group, row_at, are_biased, count, sums);
    }
}

}  // namespace
}  // namespace patchcaption
