// The weighted sum of gathered int8 rows: weights are quantized to 16 bits, and multiplied by the rows in two halves.
// For residuals, which are less than a step of the rows, 8 bits are enough: kParts is then 1.
//
// Shapes: as in int8_products.h.
#pragma once

#include "int8_products.h"

namespace patchcaption {
namespace {

// The weights of gathered rows for 16 queries, as whole multiples of a step below 2**16, or 2**8.
struct QuantizedWeights {
    Floats steps[kQueryVectors];
    Ints totals[kQueryVectors];  // the sum over the rows
};

// Quantizes weights (count, 16) * scales of the rows, and places the bytes of each as the products want them.
template <int kParts>
QuantizedWeights quantize_weights(const Rows &rows, const float *scales, const Int8Scratch &scratch) {
    QuantizedWeights quantized;
    for (int64_t v = 0; v < kQueryVectors; ++v) {
        const float *weights = scratch.weights + v * LANES;
        const auto weight = [&](int64_t index) {
            return load_floats(weights + index * kQueryPadding) * (scales ? scales[rows.number(index)] : 1.0f);
        };
        Floats largest = broadcast(1e-33f);
        for (int64_t index = 0; index < rows.count; ++index) largest = max(largest, weight(index));
        constexpr float kLargestStep = kParts == 2 ? 65535.0f : 255.0f;
        const Floats steps_per_weight = kLargestStep / largest;
        Ints total{};
        for (int64_t first = 0; first < rows.count; first += 4) {
            Ints high{}, low{};
            for (int64_t r = 0; r < 4 && first + r < rows.count; ++r) {
                const Ints steps = __builtin_convertvector(weight(first + r) * steps_per_weight + 0.5f, Ints);
                high |= (kParts == 2 ? steps >> 8 : steps) << (8 * r);
                if constexpr (kParts == 2) low |= (steps & 255) << (8 * r);
                total += steps;
            }
            const int64_t offset = (first * kQueryPadding / 4 + v * LANES) * 4;
            std::memcpy(scratch.weight_fours[0] + offset, &high, sizeof high);
            if constexpr (kParts == 2) std::memcpy(scratch.weight_fours[1] + offset, &low, sizeof low);
        }
        quantized.steps[v] = largest / kLargestStep;
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
template <int kParts, int kQueries, typename LoadFours>
inline void accumulate_int8_tile(const QueryBatch &batch, const Int8Scratch &scratch, int64_t count, int64_t column,
                                 int64_t d, const QuantizedWeights &weights, LoadFours load_fours, float *sums) {
    Ints high[kQueries][4] = {}, low[kQueries][4] = {};
    for (int64_t first = 0; first < count; first += 4) {
        Bytes rows[4];
        load_fours(first, rows);
        for (int q = 0; q < kQueries; ++q) {
            const int64_t offset = first * kQueryPadding + (column + q) * 4;
            const Bytes high_four = broadcast_four(scratch.weight_fours[0] + offset);
            for (int c = 0; c < 4; ++c) high[q][c] = DOT_WEIGHTS(high[q][c], high_four, rows[c]);
            if constexpr (kParts == 2) {
                const Bytes low_four = broadcast_four(scratch.weight_fours[1] + offset);
                for (int c = 0; c < 4; ++c) low[q][c] = DOT_WEIGHTS(low[q][c], low_four, rows[c]);
            }
        }
    }
    for (int q = 0; q < kQueries; ++q) {
        const int64_t v = (column + q) / LANES, lane = (column + q) % LANES;
        const int32_t bias = kWeightedRowBias * weights.totals[v][lane];
        for (int c = 0; c < 4; ++c) high[q][c] = (kParts == 2 ? (high[q][c] << 8) + low[q][c] : high[q][c]) - bias;
        ORDER_COLUMNS(high[q]);
        for (int64_t c = 0; c < 4 && d + c * LANES < batch.padded_width; ++c) {
            float *to = sums + (column + q) * batch.padded_width + d + c * LANES;
            store(to, load_floats(to) + __builtin_convertvector(high[q][c], Floats) * weights.steps[v][lane]);
        }
    }
}

// Adds weights (count, 16) * scales of the rows * their bytes to the weighted sums of a group.
template <int kParts>
void accumulate_int8(const QueryBatch &batch, const Rows &rows, const float *scales, const RowBytes &bytes,
                     int64_t group, const Int8Scratch &scratch, Partial &partial) {
    const QuantizedWeights weights = quantize_weights<kParts>(rows, scales, scratch);
    float *sums = partial.weighted_sum + group * kQueryPadding * batch.padded_width;
    const int64_t queries = queries_of_group(batch, group);
    for (int64_t d = 0; d < batch.padded_width; d += 4 * LANES) {
        const auto interleave = [&](int64_t first, Bytes fours[4]) { interleave_four(bytes, first, d, fours); };
        if (queries == 1) {
            accumulate_int8_tile<kParts, 1>(batch, scratch, rows.count, 0, d, weights, interleave, sums);
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
            accumulate_int8_tile<kParts, kMany>(batch, scratch, rows.count, q, d, weights, load, sums);
        }
        if (q < queries) accumulate_int8_tile<kParts, 1>(batch, scratch, rows.count, q, d, weights, load, sums);
    }
}

}  // namespace
}  // namespace patchcaption
