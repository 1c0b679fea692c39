// AVX-512 with BF16 and VNNI: Xeon since 2023, AMD since Zen 4.
//
// int8 rows are scanned as in avx512vnni.cpp. bfloat16 rows are multiplied by queries rounded to bfloat16, two products
// at a time and from the bank itself: that shows which rows some query may not neglect, whatever the rounding left of
// it. Those rows are gathered, and go through the float32 scan. Where most rows matter, blocks skip this.
//
// Shapes: as in scan_interface.h; G = padded R / 16 the groups of queries.
#include "cpu_avx512.h"
#include "int8_avx512.h"

namespace patchcaption {
namespace {

constexpr int64_t kBf16TileRows = 16;
constexpr int64_t kSkippedBlocks = 15;  // that follow one of which most rows matter

// The scratch memory of one thread.
struct Bf16Scratch {
    uint16_t *queries;         // (G, 16, padded D); side by side: (G, padded D / 2, 16, 2)
    float *low_norms;          // (padded R,) length of what the rounding leaves of a query
    float *coarse;             // (kBlock, 16) logits of the rounded queries
    float *rows;               // (kBlock, padded D)
    float *logits;             // (kBlock, 16)
    uint32_t *gathered;        // (G, kBlock) numbers of the rows that are gathered
    int64_t *gathered_counts;  // (G,)
};

// Assigns addresses from `memory` on, and returns how many bytes they take.
int64_t partition_bf16_scratch(const QueryBatch &batch, char *memory, Bf16Scratch &scratch) {
    char *next = memory;
    const auto take = [&next](auto *&array, int64_t count) {
        array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(next);
        next += (count * static_cast<int64_t>(sizeof *array) + 63) / 64 * 64;
    };
    take(scratch.rows, kBlock * batch.padded_width);
    take(scratch.logits, kBlock * kQueryPadding);
    take(scratch.coarse, kBlock * kQueryPadding);
    take(scratch.queries, batch.padded_count * batch.padded_width);
    take(scratch.low_norms, batch.padded_count);
    take(scratch.gathered, batch.padded_count / kQueryPadding * kBlock);
    take(scratch.gathered_counts, batch.padded_count / kQueryPadding);
    return next - memory;
}

inline __m512bh load_bf16_bits(const uint16_t *from) { return (__m512bh)_mm512_loadu_si512(from); }

inline __m512bh broadcast_pair(const uint16_t *from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// What bf16_scan and the functions that it calls work with.
struct Bf16Scan {
    const patchcaption_bank &bank;
    const QueryBatch &batch;
    ResidualSource &residual_source;
    Partial &partial;
    Bf16Scratch scratch;

    const uint16_t *row(int64_t number) const { return static_cast<const uint16_t *>(bank.rows) + number * bank.width; }

    bool is_few(int64_t group) const { return has_few_queries(batch, group); }

    void round_queries() const {
        for (int64_t query = 0; query < batch.count; ++query) {
            const float *from = batch.unit_queries + query * batch.padded_width;
            const int64_t group = query / kQueryPadding, column = query % kQueryPadding;
            uint16_t *to = scratch.queries + group * kQueryPadding * batch.padded_width;
            float left_squares = 0;
            for (int64_t d = 0; d < batch.padded_width; ++d) {
                uint32_t bits;
                std::memcpy(&bits, from + d, sizeof bits);
                const uint32_t rounded_bits = (bits + 0x8000) & 0xffff0000;
                float rounded;
                std::memcpy(&rounded, &rounded_bits, sizeof rounded);
                left_squares += (from[d] - rounded) * (from[d] - rounded);
                const int64_t offset =
                    is_few(group) ? column * batch.padded_width + d : (d / 2 * kQueryPadding + column) * 2 + d % 2;
                to[offset] = static_cast<uint16_t>(rounded_bits >> 16);
            }
            scratch.low_norms[query] = std::sqrt(left_squares);
        }
    }

    // Coarse products (kBlock, 16) of a block by the queries of a group, side by side.
    void multiply_in_lanes(int64_t start, int64_t group, bool has_next) const {
        const int64_t width = bank.width;
        const uint16_t *queries = scratch.queries + group * kQueryPadding * width;
        for (int64_t first = 0; first < kBlock; first += kBf16TileRows) {
            const uint16_t *rows = row(start + first);
            __m512 totals[kBf16TileRows] = {};
            for (int64_t d = 0; d < width; d += 2) {
                if (has_next && d % 32 == 0) {
                    for (int64_t m = 0; m < kBf16TileRows; ++m) {
                        __builtin_prefetch(rows + (kBlock + m) * width + d, 0, 2);
                    }
                }
                const __m512bh query_pairs = load_bf16_bits(queries + d * kQueryPadding);
#pragma GCC unroll 16
                for (int64_t m = 0; m < kBf16TileRows; ++m) {
                    totals[m] = _mm512_dpbf16_ps(totals[m], query_pairs, broadcast_pair(rows + m * width + d));
                }
            }
            std::memcpy(scratch.coarse + first * kQueryPadding, totals, sizeof totals);
        }
    }

    // The same for the first kQueries of a group, one after another along D.
    template <int kQueries>
    void multiply_along_width(int64_t start, int64_t group) const {
        const int64_t width = bank.width;
        const uint16_t *queries = scratch.queries + group * kQueryPadding * width;
        for (int64_t index = 0; index < kBlock; ++index) {
            __m512 totals[kQueries] = {};
            for (int64_t d = 0; d < width; d += 32) {
                const __m512bh row_values = load_bf16_bits(row(start + index) + d);
                for (int q = 0; q < kQueries; ++q) {
                    totals[q] = _mm512_dpbf16_ps(totals[q], row_values, load_bf16_bits(queries + q * width + d));
                }
            }
            float *products = scratch.coarse + index * kQueryPadding;
            for (int q = 0; q < kQueries; ++q) products[q] = _mm512_reduce_add_ps(totals[q]);
            for (int q = kQueries; q < kQueryPadding; ++q) products[q] = 0;
        }
    }

    void multiply(int64_t start, int64_t group, bool has_next) const {
        switch (queries_of_group(batch, group)) {
            case 1: return multiply_along_width<1>(start, group);
            case 2: return multiply_along_width<2>(start, group);
            case 3: return multiply_along_width<3>(start, group);
            case 4: return multiply_along_width<4>(start, group);
            default: return multiply_in_lanes(start, group, has_next);
        }
    }

    // Adds the gathered rows of a group to its softmax.
    void add_gathered(int64_t group) const {
        const int64_t count = scratch.gathered_counts[group], first_query = group * kQueryPadding;
        const Rows rows = {0, scratch.gathered + group * kBlock, count};
        float inverse_norms[kBlock];
        uint32_t positions[kBlock];
        for (int64_t index = 0; index < count; ++index) {
            const uint32_t number = rows.number(index);
            inverse_norms[index] = bank.inverse_norms[number];
            positions[index] = static_cast<uint32_t>(index);
            const int8_t *residual = batch.with_residual ? residual_source.block(number, 1) : nullptr;
            float *out = scratch.rows + index * batch.padded_width;
            unpack_row(bank, number, batch.padded_width, out);
            if (residual) add_residual(bank, number, residual, batch.padded_width, out, out);
        }
        block_logits(batch, inverse_norms, count, first_query, scratch.rows, scratch.logits);
        update_softmax(bank, batch, rows, first_query, scratch.logits, partial);
        accumulate_block(batch, {0, positions, count}, first_query, scratch.logits, scratch.rows,
                         partial.weighted_sum + first_query * batch.padded_width);
        scratch.gathered_counts[group] = 0;
    }

    // Logits below which a group may neglect a row: lower by what the rounding and the residual may add, by Cauchy and
    // Schwarz.
    Floats limit(int64_t group) const {
        const int64_t query = group * kQueryPadding;
        const Floats low = load_floats(scratch.low_norms + query) * (batch.inverse_temperature * kMaxRowLength);
        return load_floats(partial.negligible_logits + query) - low;
    }

    // Gathers the rows of a block that some query of a group may not neglect; returns how many.
    int64_t gather(int64_t start, int64_t group) const {
        Floats limits = limit(group);
        const float residual_steps = 127 * std::sqrt(static_cast<float>(bank.width));  // the largest length in steps
        int64_t &count = scratch.gathered_counts[group], chosen = 0;
        for (int64_t number = start; number < start + kBlock; ++number) {
            const float factor = bank.inverse_norms[number] * batch.inverse_temperature;
            const float residual = batch.with_residual ? bank.residual_scales[number] * residual_steps * factor : 0;
            const float scale = row_scale(bank, number) * factor;
            const Floats logits = load_floats(scratch.coarse + (number - start) * kQueryPadding) * scale + residual;
            if (!any(logits > limits)) continue;
            ++chosen;
            scratch.gathered[group * kBlock + count++] = static_cast<uint32_t>(number);
            if (count < kBlock) continue;
            add_gathered(group);
            limits = limit(group);
        }
        return chosen;
    }

    void run(int64_t begin, int64_t end) const {
        const int64_t groups = batch.padded_count / kQueryPadding;
        std::memset(scratch.gathered_counts, 0, sizeof(int64_t) * groups);
        round_queries();
        int64_t skipped_until = begin;
        for (int64_t start = begin; start < end; start += kBlock) {
            const int64_t rows = end - start < kBlock ? end - start : kBlock;
            if (start < skipped_until || rows < kBlock) {
                simd_scan_block(bank, batch, start, rows, residual_source, partial, scratch.rows, scratch.logits);
                continue;
            }
            int64_t chosen = 0;
            for (int64_t group = 0; group < groups; ++group) {
                multiply(start, group, group == 0 && start + 2 * kBlock <= end);
                chosen += gather(start, group);
            }
            if (2 * chosen > groups * kBlock) skipped_until = start + (1 + kSkippedBlocks) * kBlock;
        }
        for (int64_t group = 0; group < groups; ++group) {
            if (scratch.gathered_counts[group]) add_gathered(group);
        }
    }
};

// Other widths are no whole vectors.
bool takes_bf16_products(const patchcaption_bank &bank, const QueryBatch &batch) {
    return bank.storage == PATCHCAPTION_BF16 && bank.width == batch.padded_width;
}

int64_t scratch_bytes(const patchcaption_bank &bank, const QueryBatch &batch) {
    Bf16Scratch scratch;
    return takes_bf16_products(bank, batch) ? partition_bf16_scratch(batch, nullptr, scratch)
                                            : int8_scratch_bytes(bank, batch);
}

void bf16_scan(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
               ResidualSource &residual_source, Partial &partial, void *memory) {
    if (!takes_bf16_products(bank, batch)) {
        return int8_scan(bank, batch, begin, end, residual_source, partial, memory);
    }
    Bf16Scan scan = {bank, batch, residual_source, partial, {}};
    partition_bf16_scratch(batch, static_cast<char *>(memory), scan.scratch);
    scan.run(begin, end);
}

}  // namespace
const Variant kAvx512Bf16 = {"avx512bf16", 0, has_avx512_vnni_bf16, scratch_bytes, bf16_scan, simd_refine};
}  // namespace patchcaption
