// The scan in vectors of LANES floats. A variant defines LANES and, if it has instructions for them, LOAD_FP16 and
// LOAD_INT8, then includes this file once. Everything is local to the including file: the linker must not merge
// functions that were compiled for different instruction sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "scan_interface.h"

namespace patchcaption {
namespace {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int8_t Int8s __attribute__((vector_size(LANES)));
typedef uint16_t Uint16s __attribute__((vector_size(2 * LANES)));

template <typename Vector, typename Element>
inline Vector load(const Element *from) {
    Vector values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load_floats(const float *from) { return load<Floats>(from); }

inline void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }

inline float horizontal_sum(Floats values) {
#ifdef SUM_LANES
    return SUM_LANES(values);
#else
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
#endif
}

// Whether any lane of a comparison is true.
inline bool any(Ints lanes) {
#ifdef ANY_LANE
    return ANY_LANE(lanes);
#else
    int32_t bits = 0;
    for (int lane = 0; lane < LANES; ++lane) bits |= lanes[lane];
    return bits != 0;
#endif
}

// exp(x) for x <= 0, within 2 ulp; x below -87 counts as -87.
inline Floats fast_exp(Floats x) {
    x = max(x, broadcast(-87.0f));
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2**23: adding it rounds to integers
    const Floats exponent = (x * 1.44269504f + magic) - magic;
    const Floats remainder = (x - exponent * 0.693359375f) + exponent * 2.12194440e-4f;
    Floats result = broadcast(1.9875691500e-4f);
    result = result * remainder + 1.3981999507e-3f;
    result = result * remainder + 8.3334519073e-3f;
    result = result * remainder + 4.1665795894e-2f;
    result = result * remainder + 1.6666665459e-1f;
    result = result * remainder + 5.0000001201e-1f;
    result = result * remainder * remainder + remainder + 1.0f;
    const Ints power_bits = (__builtin_convertvector(exponent, Ints) + 127) << 23;
    return result * load<Floats>(reinterpret_cast<const float *>(&power_bits));
}

inline Floats load_int8(const int8_t *from) {
#ifdef LOAD_INT8
    return LOAD_INT8(from);
#else
    return __builtin_convertvector(__builtin_convertvector(load<Int8s>(from), Ints), Floats);
#endif
}

inline Floats load_bf16(const uint16_t *from) {
    const Ints bits = __builtin_convertvector(load<Uint16s>(from), Ints) << 16;
    return load<Floats>(reinterpret_cast<const float *>(&bits));
}

// Without an instruction: shifts exponent and fraction into their float32 positions, then corrects the exponent's bias
// by a multiplication, which handles subnormal values too.
inline Floats load_fp16(const uint16_t *from) {
#ifdef LOAD_FP16
    return LOAD_FP16(from);
#else
    const Ints bits = __builtin_convertvector(load<Uint16s>(from), Ints);
    const Ints shifted = (bits & 0x7fff) << 13;
    const Floats magnitude = load<Floats>(reinterpret_cast<const float *>(&shifted)) * 5.192296858534828e33f;  // 2**112
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
#endif
}

template <int kStorage>
inline Floats load_stored(const patchcaption_bank &bank, int64_t offset) {
    if constexpr (kStorage == PATCHCAPTION_FP16) return load_fp16(static_cast<const uint16_t *>(bank.rows) + offset);
    if constexpr (kStorage == PATCHCAPTION_BF16) return load_bf16(static_cast<const uint16_t *>(bank.rows) + offset);
    if constexpr (kStorage == PATCHCAPTION_INT8) return load_int8(static_cast<const int8_t *>(bank.rows) + offset);
    return load_floats(static_cast<const float *>(bank.rows) + offset);
}

inline float load_one_stored(const patchcaption_bank &bank, int64_t offset) {
    Floats values{};
    uint16_t half[LANES] = {};
    int8_t byte[LANES] = {};
    switch (bank.storage) {
        case PATCHCAPTION_FP16:
            half[0] = static_cast<const uint16_t *>(bank.rows)[offset];
            values = load_fp16(half);
            break;
        case PATCHCAPTION_BF16:
            half[0] = static_cast<const uint16_t *>(bank.rows)[offset];
            values = load_bf16(half);
            break;
        case PATCHCAPTION_INT8:
            byte[0] = static_cast<const int8_t *>(bank.rows)[offset];
            values = load_int8(byte);
            break;
        default: return static_cast<const float *>(bank.rows)[offset];
    }
    return values[0];
}

template <int kStorage>
void unpack_stored(const patchcaption_bank &bank, int64_t row, int64_t padded_width, float *out) {
    const float scale = bank.scales ? bank.scales[row] : 1.0f;
    const int64_t offset = row * bank.width;
    int64_t d = 0;
    for (; d + LANES <= bank.width; d += LANES) store(out + d, load_stored<kStorage>(bank, offset + d) * scale);
    for (; d < bank.width; ++d) out[d] = load_one_stored(bank, offset + d) * scale;
    for (; d < padded_width; ++d) out[d] = 0;
}

// Writes one row as floats to `out` (padded D,), as it is stored, zero where padded.
void unpack_row(const patchcaption_bank &bank, int64_t row, int64_t padded_width, float *out) {
    switch (bank.storage) {
        case PATCHCAPTION_FP16: return unpack_stored<PATCHCAPTION_FP16>(bank, row, padded_width, out);
        case PATCHCAPTION_BF16: return unpack_stored<PATCHCAPTION_BF16>(bank, row, padded_width, out);
        case PATCHCAPTION_INT8: return unpack_stored<PATCHCAPTION_INT8>(bank, row, padded_width, out);
        default: return unpack_stored<PATCHCAPTION_FP32>(bank, row, padded_width, out);
    }
}

// Writes an unpacked row (padded D,) with its residual (D,) added to `out` (padded D,), which may be the same memory.
void add_residual(const patchcaption_bank &bank, int64_t row, const int8_t *residual, int64_t padded_width,
                  const float *unpacked, float *out) {
    const float scale = bank.residual_scales[row];
    int64_t d = 0;
    for (; d + LANES <= bank.width; d += LANES) {
        store(out + d, load_floats(unpacked + d) + load_int8(residual + d) * scale);
    }
    for (; d < bank.width; ++d) out[d] = unpacked[d] + static_cast<float>(residual[d]) * scale;
    for (; d < padded_width; ++d) out[d] = 0;
}

// Rows of a bank, numbered from `first` on: those at `positions` (count,).
struct Rows {
    int64_t first;
    const uint32_t *positions;
    int64_t count;

    uint32_t number(int64_t index) const { return static_cast<uint32_t>(first + positions[index]); }
};

// Writes the positions of those of a block's rows that one of 16 queries from `first_query` on may not neglect, by
// their logits (kBlock, 16). Returns how many there are.
inline int64_t find_rows(int64_t rows, int64_t first_query, const Partial &partial, const float *logits,
                         uint32_t *positions) {
    constexpr int64_t kVectors = kQueryPadding / LANES;
    Floats limits[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) limits[v] = load_floats(partial.negligible_logits + first_query + v * LANES);
    int64_t count = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const float *row_logits = logits + row * kQueryPadding;
        Ints matters{};
        for (int64_t v = 0; v < kVectors; ++v) matters |= load_floats(row_logits + v * LANES) > limits[v];
        if (any(matters)) positions[count++] = static_cast<uint32_t>(row);
    }
    return count;
}

// Copies the logits (kBlock, 16) of rows at `positions` (count,) to `chosen` (count, 16), which may be the same memory.
inline void copy_logits(const float *logits, const uint32_t *positions, int64_t count, float *chosen) {
    for (int64_t index = 0; index < count; ++index) {
        const float *from = logits + positions[index] * kQueryPadding;
        float *to = chosen + index * kQueryPadding;
        if (to != from) std::memcpy(to, from, 4 * kQueryPadding);
    }
}

// Of a block's rows, chooses those that one of 16 queries from `first_query` on may not neglect: writes their positions
// in the block and moves their logits (kBlock, 16) together. Returns how many there are.
inline int64_t choose_rows(int64_t rows, int64_t first_query, const Partial &partial, float *logits,
                           uint32_t *positions) {
    const int64_t count = find_rows(rows, first_query, partial, logits, positions);
    copy_logits(logits, positions, count, logits);
    return count;
}

// Adds the rows whose logits are above the threshold to the candidates of 16 queries from `first_query` on.
// logits (count, 16), max_logits (16,).
void collect_candidates(const Rows &rows, int64_t first_query, const float *logits, const Floats *max_logits,
                        Partial &partial) {
    for (int64_t v = 0; v < kQueryPadding / LANES; ++v) {
        const int64_t first = first_query + v * LANES;
        const float *thresholds = partial.thresholds + first;
        if (!any(max_logits[v] > load_floats(thresholds))) continue;
        for (int64_t index = 0; index < rows.count; ++index) {
            const Floats row_logits = load_floats(logits + index * kQueryPadding + v * LANES);
            if (!any(row_logits > load_floats(thresholds))) continue;
            for (int64_t lane = 0; lane < LANES; ++lane) {
                if (!(row_logits[lane] > thresholds[lane])) continue;
                const int64_t query = first + lane;
                const uint32_t row = rows.number(index);
                int64_t &count = partial.candidate_counts[query];
                if (count == partial.candidate_capacity) partial.keep_top(partial, query, row);
                partial.candidates[query * partial.candidate_capacity + count++] = {row_logits[lane], row};
            }
        }
    }
}

// Updates what the 16 queries from `first_query` on may neglect, by the softmax so far. A row's share of the sum of
// weights is then below kNegligible / M, that of all neglected rows together below kNegligible.
void update_negligible_logits(const patchcaption_bank &bank, const QueryBatch &batch, int64_t first_query,
                              Partial &partial) {
    for (int64_t query = first_query; query < batch.count && query < first_query + kQueryPadding; ++query) {
        const float share = kNegligible / static_cast<float>(bank.row_count);
        partial.negligible_logits[query] = partial.max_logits[query] + std::log(partial.denominators[query] * share);
    }
}

// Updates the running softmax of 16 queries from `first_query` on by some rows, all but their share of the weighted
// sum. Replaces logits (count, 16) by weights, exp(logit - max_logit).
void update_softmax(const patchcaption_bank &bank, const QueryBatch &batch, const Rows &rows, int64_t first_query,
                    float *logits, Partial &partial) {
    constexpr int64_t kVectors = kQueryPadding / LANES;
    Floats rows_max[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
        Floats so_far = broadcast(-INFINITY);
        for (int64_t index = 0; index < rows.count; ++index) {
            so_far = max(so_far, load_floats(logits + index * kQueryPadding + v * LANES));
        }
        rows_max[v] = so_far;
    }
    if (partial.candidate_capacity) {
        collect_candidates(rows, first_query, logits, rows_max, partial);
    }
    for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t query = first_query + v * LANES;
        if (query >= batch.count) break;
        const Floats old_max = load_floats(partial.max_logits + query);
        const Floats new_max = max(old_max, rows_max[v]);
        const Floats rescale = fast_exp(old_max - new_max);
        for (int64_t lane = 0; lane < LANES && query + lane < batch.count; ++lane) {
            if (!(new_max[lane] > old_max[lane])) continue;
            float *weighted_sum = partial.weighted_sum + (query + lane) * batch.padded_width;
            const Floats factor = broadcast(rescale[lane]);
            for (int64_t d = 0; d < batch.padded_width; d += LANES) {
                store(weighted_sum + d, load_floats(weighted_sum + d) * factor);
            }
        }
        Floats denominator = load_floats(partial.denominators + query) * rescale;
        Floats squared_errors{};
        for (int64_t index = 0; index < rows.count; ++index) {
            float *row_logits = logits + index * kQueryPadding + v * LANES;
            const Floats weight = fast_exp(load_floats(row_logits) - new_max);
            store(row_logits, weight);
            denominator += weight;
            if (bank.squared_errors) squared_errors += weight * weight * bank.squared_errors[rows.number(index)];
        }
        store(partial.max_logits + query, new_max);
        store(partial.denominators + query, denominator);
        for (int64_t lane = 0; lane < LANES; ++lane) {
            double &sum = partial.squared_errors[query + lane];
            sum = sum * rescale[lane] * rescale[lane] + squared_errors[lane];
        }
    }
    update_negligible_logits(bank, batch, first_query, partial);
}

// Logits (kBlock, 16) of a block of rows (kBlock, padded D) for kQueries of 16 queries, from `column` on. kRows x
// kQueries sums stay in registers.
template <int kRows, int kQueries>
void logits_tile(const QueryBatch &batch, const float *inverse_norms, int64_t rows, int64_t first_query, int64_t column,
                 const float *block, float *logits) {
    const int64_t width = batch.padded_width;
    const float *unit_queries = batch.unit_queries + (first_query + column) * width;
    for (int64_t row = 0; row < rows; row += kRows) {
        Floats sums[kRows][kQueries] = {};
        for (int64_t d = 0; d < width; d += LANES) {
            Floats query_values[kQueries];
            for (int q = 0; q < kQueries; ++q) query_values[q] = load_floats(unit_queries + q * width + d);
            for (int m = 0; m < kRows; ++m) {
                const Floats row_values = load_floats(block + (row + m) * width + d);
                for (int q = 0; q < kQueries; ++q) sums[m][q] += row_values * query_values[q];
            }
        }
        for (int m = 0; m < kRows; ++m) {
            const float factor = row + m < rows ? inverse_norms[row + m] * batch.inverse_temperature : 0;
            for (int q = 0; q < kQueries; ++q) {
                logits[(row + m) * kQueryPadding + column + q] = horizontal_sum(sums[m][q]) * factor;
            }
        }
    }
}

void block_logits(const QueryBatch &batch, const float *inverse_norms, int64_t rows, int64_t first_query,
                  const float *block, float *logits) {
    constexpr int kRows = LANES == 8 ? 2 : 4, kQueries = 4;  // AVX2 has 16 vector registers, AVX-512 and NEON have 32
    std::memset(logits, 0, sizeof(float) * kBlock * kQueryPadding);
    const int64_t queries = batch.count - first_query < kQueryPadding ? batch.count - first_query : kQueryPadding;
    if (queries == 1) return logits_tile<8, 1>(batch, inverse_norms, rows, first_query, 0, block, logits);
    for (int64_t column = 0; column < queries; column += kQueries) {
        logits_tile<kRows, kQueries>(batch, inverse_norms, rows, first_query, column, block, logits);
    }
}

// weighted_sum (kQueries, padded D) += the transpose of weights (count, kQueries of 16) @ the chosen rows of a block
// (kBlock, padded D). kQueries x kVectors sums stay in registers.
template <int kQueries, int kVectors>
void accumulate_tile(const QueryBatch &batch, const Rows &rows, const float *weights, const float *block,
                     float *weighted_sum) {
    const int64_t width = batch.padded_width;
    for (int64_t d = 0; d < width; d += kVectors * LANES) {
        Floats sums[kQueries][kVectors];
        for (int q = 0; q < kQueries; ++q) {
            for (int v = 0; v < kVectors; ++v) sums[q][v] = load_floats(weighted_sum + q * width + d + v * LANES);
        }
        for (int64_t index = 0; index < rows.count; ++index) {
            const float *row_weights = weights + index * kQueryPadding;
            const float *row_values = block + rows.positions[index] * width + d;
            for (int q = 0; q < kQueries; ++q) {
                for (int v = 0; v < kVectors; ++v) sums[q][v] += load_floats(row_values + v * LANES) * row_weights[q];
            }
        }
        for (int q = 0; q < kQueries; ++q) {
            for (int v = 0; v < kVectors; ++v) store(weighted_sum + q * width + d + v * LANES, sums[q][v]);
        }
    }
}

void accumulate_block(const QueryBatch &batch, const Rows &rows, int64_t first_query, const float *weights,
                      const float *block, float *weighted_sum) {
    constexpr int kQueries = LANES == 16 ? 8 : 4, kVectors = 2;  // for 32 vector registers, or 16
    if (batch.count - first_query == 1) {
        return accumulate_tile<1, 32 / LANES>(batch, rows, weights, block, weighted_sum);
    }
    for (int64_t column = 0; column < kQueryPadding && first_query + column < batch.count; column += kQueries) {
        accumulate_tile<kQueries, kVectors>(batch, rows, weights + column, block,
                                            weighted_sum + column * batch.padded_width);
    }
}

[[maybe_unused]] int64_t simd_scratch_bytes(const patchcaption_bank &, const QueryBatch &batch) {
    return 4 * kBlock * (batch.padded_width + kQueryPadding);
}

// Adds a block of rows to the softmax of every query. unpacked (kBlock, padded D) and logits (kBlock, 16) are scratch
// memory.
void simd_scan_block(const patchcaption_bank &bank, const QueryBatch &batch, int64_t start, int64_t rows,
                     ResidualSource &residual_source, Partial &partial, float *unpacked, float *logits) {
    const bool needs_no_unpacking =
        bank.storage == PATCHCAPTION_FP32 && !bank.scales && !batch.with_residual && bank.width == batch.padded_width;
    const float *block = unpacked;
    if (needs_no_unpacking && rows == kBlock) {
        block = static_cast<const float *>(bank.rows) + start * bank.width;
    } else {
        const int8_t *residual = residual_source.block(start, rows);
        for (int64_t row = 0; row < rows; ++row) {
            const int8_t *row_residual = residual ? residual + row * bank.width : nullptr;
            float *out = unpacked + row * batch.padded_width;
            unpack_row(bank, start + row, batch.padded_width, out);
            if (row_residual) add_residual(bank, start + row, row_residual, batch.padded_width, out, out);
        }
        std::memset(unpacked + rows * batch.padded_width, 0, 4 * (kBlock - rows) * batch.padded_width);
    }
    for (int64_t first_query = 0; first_query < batch.count; first_query += kQueryPadding) {
        block_logits(batch, bank.inverse_norms + start, rows, first_query, block, logits);
        uint32_t positions[kBlock];
        const Rows chosen = {start, positions, choose_rows(rows, first_query, partial, logits, positions)};
        if (!chosen.count) continue;
        update_softmax(bank, batch, chosen, first_query, logits, partial);
        accumulate_block(batch, chosen, first_query, logits, block,
                         partial.weighted_sum + first_query * batch.padded_width);
    }
}

void simd_scan(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
               ResidualSource &residual_source, Partial &partial, void *scratch) {
    float *unpacked = static_cast<float *>(scratch);
    float *logits = unpacked + kBlock * batch.padded_width;
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t rows = end - start < kBlock ? end - start : kBlock;
        simd_scan_block(bank, batch, start, rows, residual_source, partial, unpacked, logits);
    }
}

constexpr int64_t kRefinedRows = 4;  // processed together: unpacked, they stay in the L1 cache

// Adds up to kRefinedRows rows to the sums of a query. stored and refined (kRefinedRows, padded D) are scratch memory.
void refine_few(const patchcaption_bank &bank, const QueryBatch &batch, int64_t query, float max_logit,
                const RefinedRow *rows, int64_t count, RefinedSums &sums, float *stored, float *refined) {
    const int64_t width = batch.padded_width;
    const float *unit_query = batch.unit_queries + query * width;
    Floats stored_exponents = broadcast(-INFINITY), exponents = stored_exponents;
    for (int64_t index = 0; index < count; ++index) {
        const RefinedRow &row = rows[index];
        float *unpacked = stored + index * width, *with_residual = refined + index * width;
        unpack_row(bank, row.row, width, unpacked);
        add_residual(bank, row.row, row.residual, width, unpacked, with_residual);
        Floats products{};
        for (int64_t d = 0; d < width; d += LANES) {
            products += load_floats(with_residual + d) * load_floats(unit_query + d);
        }
        const float factor = bank.inverse_norms[row.row] * batch.inverse_temperature;
        stored_exponents[index] = row.logit - max_logit;
        exponents[index] = horizontal_sum(products) * factor - max_logit;
    }
    const Floats stored_weights = fast_exp(stored_exponents), weights = fast_exp(exponents);
    float *stored_sum = sums.stored_sum + query * width, *sum = sums.sum + query * width;
    for (int64_t d = 0; d < width; d += LANES) {
        Floats of_stored = load_floats(stored_sum + d), of_refined = load_floats(sum + d);
        for (int64_t index = 0; index < count; ++index) {
            of_stored += load_floats(stored + index * width + d) * stored_weights[index];
            of_refined += load_floats(refined + index * width + d) * weights[index];
        }
        store(stored_sum + d, of_stored);
        store(sum + d, of_refined);
    }
    for (int64_t index = 0; index < count; ++index) {
        sums.stored_weights[query] += stored_weights[index];
        sums.weights[query] += weights[index];
    }
}

// Adds rows to the sums of a query.
void simd_refine(const patchcaption_bank &bank, const QueryBatch &batch, int64_t query, float max_logit,
                 const RefinedRow *rows, int64_t count, RefinedSums &sums, void *scratch) {
    float *stored = static_cast<float *>(scratch), *refined = stored + kRefinedRows * batch.padded_width;
    for (int64_t first = 0; first < count; first += kRefinedRows) {
        const int64_t few = count - first < kRefinedRows ? count - first : kRefinedRows;
        refine_few(bank, batch, query, max_logit, rows + first, few, sums, stored, refined);
    }
}

}  // namespace
}  // namespace patchcaption
