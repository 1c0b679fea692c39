// The scan of int8 rows in products of 8-bit integers, summed in 32 bits; rows of other storages are left to
// simd_scan.h, which this file includes. A variant defines what simd_scan.h asks for, and
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
// A query is quantized to a high and a low int8 part. The high parts of all rows are summed first, and show which rows
// some query may not neglect, whatever their low parts are. Those rows are gathered; where there are kGathered, they
// are summed to the last bit and added to the softmax. Weights are quantized to 16 bits there.
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
constexpr int64_t kMaxInt8Width = 1 << 16;             // 2**16 products of 255 * 127 fit an int32
constexpr int64_t kGathered = LANES == 8 ? 120 : 128;  // whole tiles; 128 products of 65535 * 255 fit, too
constexpr int64_t kFewQueries = 4;                     // so many are multiplied along D, more side by side in the lanes
constexpr int64_t kTileRows = LANES == 16 ? 16 : LANES == 8 ? 6 : 4;  // for 32 vector registers, or the 16 of AVX2
constexpr float kLowStep = 1 / 254.0f;  // of a query's low part, relative to its high part's
constexpr float kMaxRowLength = 1.25f;  // of a stored row, relative to the length that it had: rounding adds far less
constexpr int64_t kSpareRows = 8;       // memory for the last tile of rows, which may be no whole one
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
    int32_t *block_sums[2];    // (kBlock, 16) high and low; the low ones of few queries only
    int32_t *residual_sums;    // (kGathered, 16) high
    float *weights;            // (kGathered, 16)
    uint8_t *row_fours;        // (kGathered / 4, 4 * LANES, 4) some columns of rows or residuals + kWeightedRowBias
    uint8_t *weight_fours[2];  // (kGathered / 4, 16, 4) high and low part
    // Of each group:
    uint32_t *gathered;  // (G, kGathered) numbers of the rows that are gathered
    int32_t
        *gathered_sums[2];  // (G, kGathered, 16) their high and low sums; low ones of many queries not before the end
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
    for (int32_t *&sums : scratch.block_sums) take(sums, (kBlock + kSpareRows) * kQueryPadding);
    take(scratch.residual_sums, kGathered * kQueryPadding);
    take(scratch.weights, kGathered * kQueryPadding);
    take(scratch.row_fours, kGathered * 4 * LANES);
    for (uint8_t *&part : scratch.weight_fours) take(part, kGathered * kQueryPadding);
    take(scratch.gathered, queries / kQueryPadding * kGathered);
    for (int32_t *&sums : scratch.gathered_sums) take(sums, queries * kGathered);
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

// Quantizes the queries and places their bytes as the products want them.
void quantize_queries(const QueryBatch &batch, const Int8Scratch &scratch) {
    for (int64_t query = 0; query < batch.count; ++query) {
        const float *from = batch.unit_queries + query * batch.padded_width;
        const int64_t group = query / kQueryPadding, column = query % kQueryPadding;
        const bool in_lanes = queries_of_group(batch, group) > kFewQueries;
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

// Adds to totals the products of kTileRows rows by 16 queries (16, 16, 4) over 64 columns.
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
            const Bytes four = broadcast_four(rows + m * stride + d);
            for (int64_t v = 0; v < kQueryVectors; ++v) totals[m][v] = DOT_ROWS(totals[m][v], four, query_bytes[v]);
        }
    }
#endif
}

// sums (count, 16) of one part of the queries of a group, side by side, with rows (count, W) + kRowBias.
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
            dot_tile(totals, rows + row * width + d, width, queries + d * kQueryPadding);
        }
#ifdef ORDER_TILE
        ORDER_TILE(totals);
#endif
        std::memcpy(sums + row * kQueryPadding, totals, sizeof totals);
    }
}

// sums (count, 16) of kParts parts of the first kQueries of a group with the rows at row_at(index), one query after
// another along D.
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

inline float row_scale(const patchcaption_bank &bank, int64_t row) { return bank.scales ? bank.scales[row] : 1.0f; }

// Logits (count, 16) of gathered rows to `scratch.weights`, from their sums.
void finish_int8_logits(const patchcaption_bank &bank, const QueryBatch &batch, const Rows &rows, int64_t group,
                        const Int8Scratch &scratch) {
    const float *query_scales = scratch.query_scales + group * kQueryPadding;
    const int64_t first_sum = group * kGathered * kQueryPadding;
    const int32_t *high_sums = scratch.gathered_sums[0] + first_sum, *low_sums = scratch.gathered_sums[1] + first_sum;
    for (int64_t index = 0; index < rows.count; ++index) {
        const int64_t row = rows.number(index), offset = index * kQueryPadding;
        const float factor = bank.inverse_norms[row] * batch.inverse_temperature;
        const float scale = row_scale(bank, row) * factor;
        const float residual_scale = batch.with_residual ? bank.residual_scales[row] * factor : 0;
        for (int64_t v = 0; v < kQueryPadding; v += LANES) {
            const Floats low = to_floats(low_sums + offset + v) * kLowStep;
            Floats sum = (to_floats(high_sums + offset + v) + low) * scale;
            if (batch.with_residual) sum += to_floats(scratch.residual_sums + offset + v) * residual_scale;
            store(scratch.weights + offset + v, sum * load_floats(query_scales + v));
        }
    }
}

// The weights of gathered rows for 16 queries, as whole multiples of a step below 2**16.
struct QuantizedWeights {
    Floats steps[kQueryVectors];
    Ints totals[kQueryVectors];  // the sum over the rows
};

// Quantizes weights (count, 16) * scales of the rows, and places the two bytes of each as the products want them.
QuantizedWeights quantize_weights(const Rows &rows, const float *scales, const Int8Scratch &scratch) {
    QuantizedWeights quantized;
    for (int64_t v = 0; v < kQueryVectors; ++v) {
        const float *weights = scratch.weights + v * LANES;
        const auto weight = [&](int64_t index) {
            return load_floats(weights + index * kQueryPadding) * (scales ? scales[rows.number(index)] : 1.0f);
        };
        Floats largest = broadcast(1e-33f);
        for (int64_t index = 0; index < rows.count; ++index) largest = max(largest, weight(index));
        const Floats steps_per_weight = 65535.0f / largest;
        Ints total{};
        for (int64_t first = 0; first < rows.count; first += 4) {
            Ints high{}, low{};
            for (int64_t r = 0; r < 4 && first + r < rows.count; ++r) {
                const Ints steps = __builtin_convertvector(weight(first + r) * steps_per_weight + 0.5f, Ints);
                high |= (steps >> 8) << (8 * r);
                low |= (steps & 255) << (8 * r);
                total += steps;
            }
            const int64_t offset = (first * kQueryPadding / 4 + v * LANES) * 4;
            std::memcpy(scratch.weight_fours[0] + offset, &high, sizeof high);
            std::memcpy(scratch.weight_fours[1] + offset, &low, sizeof low);
        }
        quantized.steps[v] = largest / 65535.0f;
        quantized.totals[v] = total;
    }
    return quantized;
}

// Interleaves bytes of four rows from column `d` on, so that a product sums over rows.
inline void interleave_four(const RowBytes &bytes, int64_t first, int64_t d, Bytes fours[4]) {
    const Bytes bias = broadcast_byte(bytes.are_biased ? 128 : kWeightedRowBias);
    Bytes rows[4];
    for (int64_t r = 0; r < 4; ++r) rows[r] = load_bytes(bytes.rows[first + r] + d) ^ bias;
    INTERLEAVE(rows, fours);
}

// Adds to the weighted sums of kQueries from `column` on of a group, in 4 * LANES columns from `d` on: the transpose of
// quantized weights (count, 16) @ rows, of which load_fours(first, fours) interleaves four from `first` on.
template <int kQueries, typename LoadFours>
inline void accumulate_int8_tile(const QueryBatch &batch, const Int8Scratch &scratch, int64_t count, int64_t column,
                                 int64_t d, const QuantizedWeights &weights, LoadFours load_fours, float *sums) {
    Ints high[kQueries][4] = {}, low[kQueries][4] = {};
    for (int64_t first = 0; first < count; first += 4) {
        Bytes rows[4];
        load_fours(first, rows);
        for (int q = 0; q < kQueries; ++q) {
            const int64_t offset = first * kQueryPadding + (column + q) * 4;
            const Bytes high_four = broadcast_four(scratch.weight_fours[0] + offset);
            const Bytes low_four = broadcast_four(scratch.weight_fours[1] + offset);
            for (int c = 0; c < 4; ++c) {
                high[q][c] = DOT_WEIGHTS(high[q][c], high_four, rows[c]);
                low[q][c] = DOT_WEIGHTS(low[q][c], low_four, rows[c]);
            }
        }
    }
    for (int q = 0; q < kQueries; ++q) {
        const int64_t v = (column + q) / LANES, lane = (column + q) % LANES;
        const int32_t bias = kWeightedRowBias * weights.totals[v][lane];
        for (int c = 0; c < 4; ++c) high[q][c] = (high[q][c] << 8) + low[q][c] - bias;
        ORDER_COLUMNS(high[q]);
        for (int64_t c = 0; c < 4 && d + c * LANES < batch.padded_width; ++c) {
            float *to = sums + (column + q) * batch.padded_width + d + c * LANES;
            store(to, load_floats(to) + __builtin_convertvector(high[q][c], Floats) * weights.steps[v][lane]);
        }
    }
}

// Adds weights (count, 16) * scales of the rows * their bytes to the weighted sums of a group.
void accumulate_int8(const QueryBatch &batch, const Rows &rows, const float *scales, const RowBytes &bytes,
                     int64_t group, const Int8Scratch &scratch, Partial &partial) {
    const QuantizedWeights weights = quantize_weights(rows, scales, scratch);
    float *sums = partial.weighted_sum + group * kQueryPadding * batch.padded_width;
    const int64_t queries = queries_of_group(batch, group);
    for (int64_t d = 0; d < batch.padded_width; d += 4 * LANES) {
        const auto interleave = [&](int64_t first, Bytes fours[4]) { interleave_four(bytes, first, d, fours); };
        if (queries == 1) {
            accumulate_int8_tile<1>(batch, scratch, rows.count, 0, d, weights, interleave, sums);
            continue;
        }
        for (int64_t first = 0; first < rows.count; first += 4) {
            Bytes fours[4];
            interleave(first, fours);
            std::memcpy(scratch.row_fours + first * 4 * LANES, fours, sizeof fours);
        }
        const auto load = [&](int64_t first, Bytes fours[4]) {
            for (int c = 0; c < 4; ++c) fours[c] = load_bytes(scratch.row_fours + (first + c) * 4 * LANES);
        };
        constexpr int kMany = LANES == 8 ? 1 : 2;  // for 16 vector registers, or 32
        int64_t q = 0;
        for (; q + kMany <= queries; q += kMany) {
            accumulate_int8_tile<kMany>(batch, scratch, rows.count, q, d, weights, load, sums);
        }
        if (q < queries) accumulate_int8_tile<1>(batch, scratch, rows.count, q, d, weights, load, sums);
    }
}

constexpr NextRows kNoNextRows = {nullptr, 0};

// What int8_scan and the functions that it calls work with.
struct Int8Scan {
    const patchcaption_bank &bank;
    const QueryBatch &batch;
    ResidualSource &residual_source;
    Partial &partial;
    Int8Scratch scratch;

    const int8_t *row(int64_t number) const { return static_cast<const int8_t *>(bank.rows) + number * bank.width; }

    bool is_few(int64_t group) const { return queries_of_group(batch, group) <= kFewQueries; }

    // Whether few queries are multiplied by the rows in the bank itself, which then has whole vectors.
    bool is_in_place() const { return batch.count <= kFewQueries && bank.width == scratch.width; }

    // Copies of some rows, or of their residuals, (count, W) + kRowBias.
    RowBytes copy_rows(const Rows &rows, bool are_residuals, uint8_t *copies) {
        RowBytes bytes;
        bytes.are_biased = true;
        for (int64_t index = 0; index < rows.count; ++index) {
            const uint32_t number = rows.number(index);
            const int8_t *from = are_residuals ? residual_source.block(number, 1) : row(number);
            copy_row(from, bank.width, scratch.width, copies + index * scratch.width);
        }
        for (int64_t index = 0; index < rows.count + 4; ++index) bytes.rows[index] = copies + index * scratch.width;
        return bytes;
    }

    RowBytes rows_in_place(const Rows &rows) const {
        RowBytes bytes;
        bytes.are_biased = false;
        for (int64_t index = 0; index < rows.count + 4; ++index) {
            const int64_t number = rows.number(index < rows.count ? index : rows.count - 1);
            bytes.rows[index] = reinterpret_cast<const uint8_t *>(row(number));
        }
        return bytes;
    }

    // Adds the gathered rows of a group to its softmax.
    void add_gathered(int64_t group) {
        const Rows rows = {0, scratch.gathered + group * kGathered, scratch.gathered_counts[group]};
        const RowBytes bytes = is_in_place() ? rows_in_place(rows) : copy_rows(rows, false, scratch.rows);
        RowBytes residuals;
        if (batch.with_residual) residuals = copy_rows(rows, true, scratch.residuals);
        if (is_few(group)) {
            const auto residual_at = [&](int64_t index) { return residuals.rows[index]; };
            int32_t *const sums[] = {scratch.residual_sums};
            if (batch.with_residual) multiply_few<1>(batch, scratch, group, residual_at, true, rows.count, sums);
        } else {
            int32_t *low_sums = scratch.gathered_sums[1] + group * kGathered * kQueryPadding;
            multiply_in_lanes(scratch, group, 1, scratch.rows, rows.count, kNoNextRows, low_sums);
            if (batch.with_residual) {
                multiply_in_lanes(scratch, group, 0, scratch.residuals, rows.count, kNoNextRows, scratch.residual_sums);
            }
        }
        finish_int8_logits(bank, batch, rows, group, scratch);
        update_softmax(bank, batch, rows, group * kQueryPadding, scratch.weights, partial);
        accumulate_int8(batch, rows, bank.scales, bytes, group, scratch, partial);
        if (batch.with_residual) {
            accumulate_int8(batch, rows, bank.residual_scales, residuals, group, scratch, partial);
        }
        scratch.gathered_counts[group] = 0;
    }

    // Logits below which a group may neglect a row. High sums alone must be as much lower as the low parts may add: to
    // a cosine at most their length times that of the row, by Cauchy and Schwarz.
    Floats limit(int64_t group, int64_t v) const {
        const int64_t query = group * kQueryPadding + v * LANES;
        const Floats negligible = load_floats(partial.negligible_logits + query);
        if (is_few(group)) return negligible;
        return negligible - load_floats(scratch.low_norms + query) * (batch.inverse_temperature * kMaxRowLength);
    }

    // Gathers the rows of a block that some query of a group may not neglect, by their block_sums.
    void gather(int64_t start, int64_t rows, int64_t group) {
        Floats limits[kQueryVectors];
        for (int64_t v = 0; v < kQueryVectors; ++v) limits[v] = limit(group, v);
        const int parts = is_few(group) ? 2 : 1;
        const float *query_scales = scratch.query_scales + group * kQueryPadding;
        const float residual_steps = 127 * std::sqrt(static_cast<float>(bank.width));  // the largest length in steps
        int64_t &count = scratch.gathered_counts[group];
        for (int64_t index = 0; index < rows; ++index) {
            const float factor = bank.inverse_norms[start + index] * batch.inverse_temperature;
            const float scale = row_scale(bank, start + index) * factor;
            const float residual =
                batch.with_residual ? bank.residual_scales[start + index] * residual_steps * factor : 0;
            Ints matters{};
            for (int64_t v = 0; v < kQueryVectors; ++v) {
                const int64_t offset = index * kQueryPadding + v * LANES;
                Floats sums = to_floats(scratch.block_sums[0] + offset);
                if (parts == 2) sums += to_floats(scratch.block_sums[1] + offset) * kLowStep;
                matters |= sums * load_floats(query_scales + v * LANES) * scale + residual > limits[v];
            }
            if (!any(matters)) continue;
            const int64_t slot = group * kGathered + count++;
            scratch.gathered[slot] = static_cast<uint32_t>(start + index);
            for (int part = 0; part < parts; ++part) {
                std::memcpy(scratch.gathered_sums[part] + slot * kQueryPadding,
                            scratch.block_sums[part] + index * kQueryPadding, 4 * kQueryPadding);
            }
            if (count < kGathered) continue;
            add_gathered(group);
            for (int64_t v = 0; v < kQueryVectors; ++v) limits[v] = limit(group, v);
        }
    }

    void multiply_in_place(int64_t start, int64_t rows) {
        const auto row_at = [&](int64_t index) { return reinterpret_cast<const uint8_t *>(row(start + index)); };
        multiply_few<2>(batch, scratch, 0, row_at, false, rows, scratch.block_sums);
        gather(start, rows, 0);
    }

    void multiply_copies(int64_t start, int64_t rows, NextRows next) {
        for (int64_t index = 0; index < rows; ++index) {
            copy_row(row(start + index), bank.width, scratch.width, scratch.block + index * scratch.width);
        }
        for (int64_t group = 0; group * kQueryPadding < batch.count; ++group) {
            if (is_few(group)) {
                const auto row_at = [&](int64_t index) { return scratch.block + index * scratch.width; };
                multiply_few<2>(batch, scratch, group, row_at, true, rows, scratch.block_sums);
            } else {
                multiply_in_lanes(scratch, group, 0, scratch.block, rows, next, scratch.block_sums[0]);
                next.rows = nullptr;  // fetched by now
            }
            gather(start, rows, group);
        }
    }

    void run(int64_t begin, int64_t end) {
        const int64_t groups = batch.padded_count / kQueryPadding;
        std::memset(scratch.gathered_counts, 0, sizeof(int64_t) * groups);
        quantize_queries(batch, scratch);
        for (int64_t start = begin; start < end; start += kBlock) {
            const int64_t rows = end - start < kBlock ? end - start : kBlock, left = end - start - rows;
            if (is_in_place()) multiply_in_place(start, rows);
            else multiply_copies(start, rows, {left < kBlock ? nullptr : row(start + rows), bank.width});
        }
        for (int64_t group = 0; group < groups; ++group) {
            if (scratch.gathered_counts[group]) add_gathered(group);
        }
    }
};

inline bool takes_int8_products(const patchcaption_bank &bank) {
    return bank.storage == PATCHCAPTION_INT8 && bank.width <= kMaxInt8Width;
}

int64_t int8_scratch_bytes(const patchcaption_bank &bank, const QueryBatch &batch) {
    const int64_t simd_bytes = simd_scratch_bytes(bank, batch);
    if (!takes_int8_products(bank)) return simd_bytes;
    Int8Scratch scratch;
    const int64_t bytes = partition_int8_scratch(batch, nullptr, scratch);
    return bytes < simd_bytes ? simd_bytes : bytes;
}

void int8_scan(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
               ResidualSource &residual_source, Partial &partial, void *memory) {
    if (!takes_int8_products(bank)) return simd_scan(bank, batch, begin, end, residual_source, partial, memory);
    Int8Scan scan = {bank, batch, residual_source, partial, {}};
    partition_int8_scratch(batch, static_cast<char *>(memory), scan.scratch);
    scan.run(begin, end);
}

}  // namespace
}  // namespace patchcaption
