// The scan of int8 rows in products of 8-bit integers; rows of other storages are left to simd_scan.h. int8_products.h
// says what a variant defines before it includes this file.
//
// The high parts of the queries are multiplied by all rows, and show which rows some query may not neglect, whatever
// the low parts are. Those rows are gathered; where there are kGathered, the low parts are multiplied too, and the rows
// added to the softmax. Few queries are bound by memory: for them both parts are multiplied at once.
//
// Shapes: as in int8_products.h.
#pragma once

#include "int8_sums.h"

namespace patchcaption {
namespace {

inline float row_scale(const patchcaption_bank &bank, int64_t row) { return bank.scales ? bank.scales[row] : 1.0f; }

// What the high and low sums of LANES queries come to, in steps of the high part.
inline Floats sum_parts(int32_t *const sums[2], int64_t offset) {
    return to_floats(sums[0] + offset) + to_floats(sums[1] + offset) * kLowStep;
}

// Logits (count, 16) of gathered rows to `scratch.weights`, from their sums. Residuals, less than a step of the rows,
// count by the high parts of the queries alone.
void finish_int8_logits(const patchcaption_bank &bank, const QueryBatch &batch, const Rows &rows, int64_t group,
                        const Int8Scratch &scratch) {
    const float *query_scales = scratch.query_scales + group * kQueryPadding;
    const int64_t first_sum = group * kGatheredSums * kQueryPadding;
    for (int64_t index = 0; index < rows.count; ++index) {
        const int64_t row = rows.number(index), offset = index * kQueryPadding;
        const float factor = bank.inverse_norms[row] * batch.inverse_temperature;
        const float scale = row_scale(bank, row) * factor;
        const float residual_scale = batch.with_residual ? bank.residual_scales[row] * factor : 0;
        for (int64_t v = 0; v < kQueryPadding; v += LANES) {
            Floats sum = sum_parts(scratch.gathered_sums, first_sum + offset + v) * scale;
            if (batch.with_residual) sum += to_floats(scratch.residual_sums + offset + v) * residual_scale;
            store(scratch.weights + offset + v, sum * load_floats(query_scales + v));
        }
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

    bool is_few(int64_t group) const { return has_few_queries(batch, group); }

    // Whether rows can be read in the bank itself; copies are padded.
    bool has_whole_vectors() const { return bank.width == scratch.width; }

    // Copies of some rows, or of their residuals, (count, W) + kRowBias.
    RowBytes copy_rows(const Rows &rows, bool are_residuals, uint8_t *copies) {
        RowBytes bytes;
        bytes.are_biased = true;
        for (int64_t index = 0; index < rows.count; ++index) {
            const uint32_t number = rows.number(index);
            const int8_t *from = are_residuals ? residual_source.block(number, 1) : row(number);
            copy_row(from, bank.width, scratch.width, copies + index * scratch.width);
        }
        const int64_t whole_fours = (rows.count + 3) / 4 * 4;
        for (int64_t index = 0; index < whole_fours; ++index) bytes.rows[index] = copies + index * scratch.width;
        return bytes;
    }

    static bool are_consecutive(const Rows &rows) {
        return rows.number(rows.count - 1) - rows.number(0) + 1 == rows.count;
    }

    // Residuals of some rows, and their sums with a group: in place where whole tiles of them follow one another.
    RowBytes multiply_residuals(const Rows &rows, int64_t group) {
        if (is_few(group) || !has_whole_vectors() || !are_consecutive(rows) || rows.count % kTileRows != 0) {
            const RowBytes copies = copy_rows(rows, true, scratch.residuals);
            multiply_copies<1>(group, scratch.residuals, rows.count, kNoNextRows, &scratch.residual_sums);
            return copies;
        }
        const int8_t *residuals = residual_source.block(rows.number(0), rows.count);
        RowBytes bytes;
        bytes.are_biased = false;
        for (int64_t index = 0; index < rows.count + 4; ++index) {
            const int64_t offset = (index < rows.count ? index : rows.count - 1) * scratch.width;
            bytes.rows[index] = reinterpret_cast<const uint8_t *>(residuals + offset);
        }
        multiply_in_lanes<false>(scratch, group, 0, bytes.rows[0], rows.count, kNoNextRows, scratch.residual_sums);
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

    // Sums (count, 16) of a group with copies of rows: of few queries those of kFewParts, of many the high ones.
    template <int kFewParts>
    void multiply_copies(int64_t group, const uint8_t *rows, int64_t count, const NextRows &next,
                         int32_t *const sums[kFewParts]) {
        if (is_few(group)) {
            const auto row_at = [&](int64_t index) { return rows + index * scratch.width; };
            return multiply_few<kFewParts>(batch, scratch, group, row_at, true, count, sums);
        }
        multiply_in_lanes<true>(scratch, group, 0, rows, count, next, sums[0]);
    }

    // Low sums of the gathered rows of a group of many queries; scratch.rows has copies already if rows need them.
    void multiply_low_parts(const Rows &rows, int64_t group) {
        int32_t *sums = scratch.gathered_sums[1] + group * kGatheredSums * kQueryPadding;
        if (has_whole_vectors() && are_consecutive(rows) && rows.count % kTileRows == 0) {
            const uint8_t *in_place = reinterpret_cast<const uint8_t *>(row(rows.number(0)));
            return multiply_in_lanes<false>(scratch, group, 1, in_place, rows.count, kNoNextRows, sums);
        }
        if (has_whole_vectors()) copy_rows(rows, false, scratch.rows);
        multiply_in_lanes<true>(scratch, group, 1, scratch.rows, rows.count, kNoNextRows, sums);
    }

    // Adds the gathered rows of a group to its softmax.
    void add_gathered(int64_t group) {
        const Rows rows = {0, scratch.gathered + group * kGathered, scratch.gathered_counts[group]};
        const RowBytes bytes = has_whole_vectors() ? rows_in_place(rows) : copy_rows(rows, false, scratch.rows);
        if (!is_few(group)) multiply_low_parts(rows, group);
        RowBytes residuals;
        if (batch.with_residual) residuals = multiply_residuals(rows, group);
        finish_int8_logits(bank, batch, rows, group, scratch);
        update_softmax(bank, batch, rows, group * kQueryPadding, scratch.weights, partial);
        accumulate_int8<2>(batch, rows, bank.scales, bytes, group, scratch, partial);
        if (batch.with_residual) {
            accumulate_int8<1>(batch, rows, bank.residual_scales, residuals, group, scratch, partial);
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

    // Where the sums of a block of rows are put, after those of the rows that a group has gathered; makes room for
    // them.
    struct BlockSums {
        int32_t *parts[2];
    };
    BlockSums block_sums(int64_t rows, int64_t group) {
        const int64_t count = scratch.gathered_counts[group];
        // Few queries are bound by memory: their rows are added soon, while they are in the first-level cache.
        if (is_few(group) ? count >= kBlock / 2 : count + rows > kGathered) add_gathered(group);
        const int64_t offset = (group * kGatheredSums + scratch.gathered_counts[group]) * kQueryPadding;
        return {{scratch.gathered_sums[0] + offset, scratch.gathered_sums[1] + offset}};
    }

    // Gathers the rows of a block that some query of a group may not neglect, by their sums.
    void gather(int64_t start, int64_t rows, int64_t group, const BlockSums &sums) {
        Floats limits[kQueryVectors];
        for (int64_t v = 0; v < kQueryVectors; ++v) limits[v] = limit(group, v);
        const int parts = is_few(group) ? 2 : 1;
        const float *query_scales = scratch.query_scales + group * kQueryPadding;
        const float residual_steps = 127 * std::sqrt(static_cast<float>(bank.width));  // the largest length in steps
        uint32_t *numbers = scratch.gathered + group * kGathered + scratch.gathered_counts[group];
        int64_t chosen = 0;
        for (int64_t index = 0; index < rows; ++index) {
            const float factor = bank.inverse_norms[start + index] * batch.inverse_temperature;
            const float scale = row_scale(bank, start + index) * factor;
            const float residual =
                batch.with_residual ? bank.residual_scales[start + index] * residual_steps * factor : 0;
            const int64_t offset = index * kQueryPadding;
            Ints matters{};
            for (int64_t v = 0; v < kQueryPadding; v += LANES) {
                const Floats steps =
                    parts == 2 ? sum_parts(sums.parts, offset + v) : to_floats(sums.parts[0] + offset + v);
                matters |= steps * load_floats(query_scales + v) * scale + residual > limits[v / LANES];
            }
            if (!any(matters)) continue;
            for (int part = 0; part < parts && chosen != index; ++part) {
                std::memcpy(sums.parts[part] + chosen * kQueryPadding, sums.parts[part] + offset, 4 * kQueryPadding);
            }
            numbers[chosen++] = static_cast<uint32_t>(start + index);
        }
        scratch.gathered_counts[group] += chosen;
    }

    void scan_in_place(int64_t start, int64_t rows) {
        const auto row_at = [&](int64_t index) { return reinterpret_cast<const uint8_t *>(row(start + index)); };
        const BlockSums sums = block_sums(rows, 0);
        multiply_few<2>(batch, scratch, 0, row_at, false, rows, sums.parts);
        gather(start, rows, 0, sums);
    }

    // Scans a block of rows: for one group of queries in the bank itself, for more as copies.
    void scan_block(int64_t start, int64_t rows, const NextRows &next) {
        if (!has_whole_vectors() || batch.count > kQueryPadding) return scan_copies(start, rows, next);
        if (is_few(0)) return scan_in_place(start, rows);
        const bool has_whole_tiles = kBlock % kTileRows == 0 || next.rows;  // the last tile may end in the next block
        if (rows < kBlock || !has_whole_tiles) return scan_copies(start, rows, next);
        const BlockSums sums = block_sums(rows, 0);
        const uint8_t *first = reinterpret_cast<const uint8_t *>(row(start));
        multiply_in_lanes<false>(scratch, 0, 0, first, rows, next, sums.parts[0]);
        gather(start, rows, 0, sums);
    }

    void scan_copies(int64_t start, int64_t rows, NextRows next) {
        for (int64_t index = 0; index < rows; ++index) {
            copy_row(row(start + index), bank.width, scratch.width, scratch.block + index * scratch.width);
        }
        for (int64_t group = 0; group * kQueryPadding < batch.count; ++group) {
            const BlockSums sums = block_sums(rows, group);
            multiply_copies<2>(group, scratch.block, rows, next, sums.parts);
            if (!is_few(group)) next.rows = nullptr;  // fetched by now
            gather(start, rows, group, sums);
        }
    }

    void run(int64_t begin, int64_t end) {
        const int64_t groups = batch.padded_count / kQueryPadding;
        std::memset(scratch.gathered_counts, 0, sizeof(int64_t) * groups);
        quantize_queries(batch, scratch);
        for (int64_t start = begin; start < end; start += kBlock) {
            const int64_t rows = end - start < kBlock ? end - start : kBlock, left = end - start - rows;
            scan_block(start, rows, {left < kBlock ? nullptr : row(start + rows), bank.width});
        }
        for (int64_t group = 0; group < groups; ++group) {
            if (scratch.gathered_counts[group]) add_gathered(group);
        }
    }
};

inline bool takes_int8_products(const patchcaption_bank &bank, const QueryBatch &batch) {
    return bank.storage == PATCHCAPTION_INT8 && bank.width <= kMaxInt8Width &&
           batch.inverse_temperature <= kMaxInverseTemperature;
}

int64_t int8_scratch_bytes(const patchcaption_bank &bank, const QueryBatch &batch) {
    const int64_t simd_bytes = simd_scratch_bytes(bank, batch);
    if (!takes_int8_products(bank, batch)) return simd_bytes;
    Int8Scratch scratch;
    const int64_t bytes = partition_int8_scratch(batch, nullptr, scratch);
    return bytes < simd_bytes ? simd_bytes : bytes;
}

void int8_scan(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
               ResidualSource &residual_source, Partial &partial, void *memory) {
    if (!takes_int8_products(bank, batch)) return simd_scan(bank, batch, begin, end, residual_source, partial, memory);
    Int8Scan scan = {bank, batch, residual_source, partial, {}};
    partition_int8_scratch(batch, static_cast<char *>(memory), scan.scratch);
    scan.run(begin, end);
}

}  // namespace
}  // namespace patchcaption
