// The scan of int8 rows by AMX: tiles of 8-bit integers, read from the bank as they are. Queries are quantized to a
// high and a low int8 part, and so are the weights of each block of rows; residuals are multiplied by the high parts.
//
// Of a block whose rows mostly are of no weight, a group of 16 queries gathers copies of those that matter, until they
// are nearly a block themselves. With residuals every block is added as it is.
//
// Shapes: as in scan_interface.h; D is a multiple of kInt8TileDepth, G = padded R / 16 the groups of queries.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "amx_tiles.h"
#include "simd_avx512.h"

namespace patchcaption {
namespace {

constexpr int64_t kInt8TileDepth = 64;  // int8 elements that one tile product sums over
constexpr int64_t kInt8Block = 128;     // rows whose weights share a scale
constexpr int64_t kInt8Chunks = kInt8Block / kInt8TileDepth;
constexpr int64_t kMaxGathered = kInt8Block / 4;  // of a block; with more it is added as it is
constexpr float kLowStep = 1 / 254.0f;            // of a low part, in those of the high one

// What is known of the rows of a block, each array (kInt8Block,).
struct BlockRows {
    const int8_t *rows;      // (kInt8Block, D)
    const int8_t *residual;  // (kInt8Block, D), or NULL
    const float *scales;     // NULL for ones
    const float *residual_scales;

    float scale(int64_t row) const { return scales ? scales[row] : 1.0f; }
};

// Copies of rows that matter to a group.
struct Gathered {
    int8_t *rows;       // (kInt8Block, D)
    float *logits;      // (kInt8Block, 16)
    float *scales;      // (kInt8Block,)
    uint32_t *numbers;  // (kInt8Block,)

    static int64_t bytes(int64_t width) { return kInt8Block * (width + 4 * (2 + kQueryPadding)); }
};

// The scratch memory of one thread.
struct Int8Scratch {
    char *query_tiles[2];      // high and low part: G x D/64 tiles, fours of int8 along D by queries
    float *query_scales;       // (padded R,) of the high part
    int32_t *tile_sums;        // (3, 16, 16)
    float *logits;             // (kInt8Block, 16), then weights
    char *row_tiles;           // D/16 x planes x kInt8Chunks tiles, fours of rows by elements along D
    char *weight_tiles;        // G x 3 x kInt8Chunks tiles: queries by rows
    float *weight_scales;      // (G, 2, 16) of the high parts: the rows', the residuals'
    int64_t *groups;           // (G,) those to which the block is added
    int64_t *gathered_counts;  // (G,)
    char *gathered;            // (G,) of Gathered

    char *weight_tiles_of(int64_t group) const { return weight_tiles + group * 3 * kInt8Chunks * kTileBytes; }

    float *weight_scales_of(int64_t group) const { return weight_scales + group * 2 * kQueryPadding; }

    Gathered gathered_of(int64_t group, int64_t width) const {
        ScratchPartition partition(gathered + group * Gathered::bytes(width));
        Gathered found;
        partition.take(found.rows, kInt8Block * width);
        partition.take(found.logits, kInt8Block * kQueryPadding);
        partition.take(found.scales, kInt8Block);
        partition.take(found.numbers, kInt8Block);
        return found;
    }
};

// Hands out the scratch memory; returns how many bytes that takes.
int64_t partition_int8_scratch(const QueryBatch &batch, void *memory, Int8Scratch &scratch) {
    const int64_t groups = batch.padded_count / kQueryPadding, width = batch.padded_width;
    ScratchPartition partition(memory);
    for (char *&tiles : scratch.query_tiles) partition.take(tiles, batch.padded_count * width);
    partition.take(scratch.tile_sums, 3 * kTileRows * kTileRows);
    partition.take(scratch.logits, kInt8Block * kQueryPadding);
    partition.take(scratch.row_tiles, 2 * kInt8Block * width);
    partition.take(scratch.weight_tiles, groups * 3 * kInt8Chunks * kTileBytes);
    partition.take(scratch.weight_scales, groups * 2 * kQueryPadding);
    partition.take(scratch.query_scales, batch.padded_count);
    partition.take(scratch.gathered, groups * Gathered::bytes(width));
    partition.take(scratch.groups, groups);
    partition.take(scratch.gathered_counts, groups);
    return partition.bytes();
}

// The nearest int8 of 16 floats, and what is left in steps of the low part.
inline __m512i split_int8(__m512 steps, __m512i &low) {
    const __m512i high = _mm512_cvtps_epi32(steps);
    const __m512 rest = _mm512_sub_ps(steps, _mm512_cvtepi32_ps(high));
    low = _mm512_cvtps_epi32(_mm512_mul_ps(rest, _mm512_set1_ps(1 / kLowStep)));
    return high;
}

// Writes 16 elements of a query as fours to the rows of its tile.
inline void store_fours(__m512i elements, char *to) {
    int32_t fours[4];
    _mm_storeu_si128(reinterpret_cast<__m128i *>(fours), _mm512_cvtepi32_epi8(elements));
    for (int64_t four = 0; four < 4; ++four) std::memcpy(to + four * 64, fours + four, 4);
}

// Quantizes the queries (padded R, D) to a high and a low int8 part, and packs them into tiles whose rows are fours of
// elements along D and whose columns are 16 queries.
void pack_int8_queries(const QueryBatch &batch, const Int8Scratch &scratch) {
    const int64_t width = batch.padded_width;
    for (int64_t query = 0; query < batch.padded_count; ++query) {
        const float *from = batch.unit_queries + query * width;
        __m512 largest = _mm512_set1_ps(1e-30f);
        for (int64_t d = 0; d < width; d += 16) {
            largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(from + d)));
        }
        const float scale = _mm512_reduce_max_ps(largest) / 127;
        scratch.query_scales[query] = scale;
        const int64_t column = query / kQueryPadding * kQueryPadding * width + query % kQueryPadding * 4;
        for (int64_t d = 0; d < width; d += 16) {
            __m512i low;
            const __m512i high = split_int8(_mm512_div_ps(_mm512_loadu_ps(from + d), _mm512_set1_ps(scale)), low);
            const int64_t offset = column + d / kInt8TileDepth * kTileBytes + d % kInt8TileDepth * kTileRows;
            store_fours(high, scratch.query_tiles[0] + offset);
            store_fours(low, scratch.query_tiles[1] + offset);
        }
    }
}

// Tiles 0 to 2 hold the sums of high parts, of low parts, and of residuals.

inline void clear_tile_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
}

template <bool kWithResidual>
inline void store_tile_sums(int32_t *sums) {
    constexpr int64_t kTileWords = kTileRows * kTileRows;
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + kTileWords, 64);
    if constexpr (kWithResidual) _tile_stored(2, sums + 2 * kTileWords, 64);
}

inline Floats tile_row(const int32_t *sums, int64_t tile, int64_t row) {
    return __builtin_convertvector(load<Ints>(sums + (tile * kTileRows + row) * kTileRows), Floats);
}

// What the high and low sums of a row come to, in steps of the high part.
inline Floats sum_parts(const int32_t *sums, int64_t row) {
    return tile_row(sums, 0, row) + tile_row(sums, 1, row) * kLowStep;
}

// Fetches the next block into the second-level cache, a little at a time: the core waits when it asks for much at once.
struct NextBlock {
    const char *from, *end;
    int64_t lines_a_step;

    void step() {
        for (int64_t line = 0; line < lines_a_step && from < end; ++line, from += 64) _mm_prefetch(from, _MM_HINT_T1);
    }
};

// Logits (kInt8Block, 16) of a block for a group of queries. `inverse_norms` (kInt8Block,).
template <bool kWithResidual>
void multiply_queries(const QueryBatch &batch, const BlockRows &block, const float *inverse_norms, int64_t group,
                      NextBlock &next, const Int8Scratch &scratch) {
    const int64_t width = batch.padded_width, tiles = width / kInt8TileDepth;
    const char *high = scratch.query_tiles[0] + group * tiles * kTileBytes;
    const char *low = scratch.query_tiles[1] + group * tiles * kTileBytes;
    const Floats query_scales = load_floats(scratch.query_scales + group * kQueryPadding) * batch.inverse_temperature;
    for (int64_t first = 0; first < kInt8Block; first += kTileRows) {
        const int8_t *rows = block.rows + first * width;
        const int8_t *residual = block.residual + first * width;
        clear_tile_sums();
        for (int64_t tile = 0; tile < tiles; ++tile) {
            _tile_loadd(3, rows + tile * kInt8TileDepth, width);
            _tile_loadd(4, high + tile * kTileBytes, 64);
            _tile_loadd(5, low + tile * kTileBytes, 64);
            _tile_dpbssd(0, 3, 4);
            _tile_dpbssd(1, 3, 5);
            if constexpr (kWithResidual) {
                _tile_loadd(6, residual + tile * kInt8TileDepth, width);
                _tile_dpbssd(2, 6, 4);
            }
            next.step();
        }
        int32_t *sums = scratch.tile_sums;
        store_tile_sums<kWithResidual>(sums);
        for (int64_t index = 0; index < kTileRows; ++index) {
            const int64_t row = first + index;
            Floats logits = sum_parts(sums, index) * block.scale(row);
            if constexpr (kWithResidual) logits += tile_row(sums, 2, index) * block.residual_scales[row];
            store(scratch.logits + row * kQueryPadding, logits * query_scales * inverse_norms[row]);
        }
    }
}

// Packs a plane of a block into tiles whose rows are fours of bank rows and whose columns are 16 elements along D.
template <int64_t kPlanes>
void interleave_rows(const int8_t *rows, int64_t width, int64_t plane, char *row_tiles) {
    // Words of a row in the order in which interleaving bytes within each 128 bits puts 16 neighbours together.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    constexpr int64_t kColumnBytes = kPlanes * kInt8Chunks * kTileBytes;
    for (int64_t d = 0; d < width; d += 64) {
        for (int64_t row = 0; row < kInt8Block; row += 4) {
            __m512i words[4];
            for (int64_t i = 0; i < 4; ++i) {
                words[i] = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(rows + (row + i) * width + d));
            }
            const __m512i pairs[2][2] = {
                {_mm512_unpacklo_epi8(words[0], words[1]), _mm512_unpacklo_epi8(words[2], words[3])},
                {_mm512_unpackhi_epi8(words[0], words[1]), _mm512_unpackhi_epi8(words[2], words[3])}};
            char *to = row_tiles + d / kTileRows * kColumnBytes + (plane * kInt8Chunks + row / 64) * kTileBytes +
                       row % 64 * kTileRows;
            for (int64_t half = 0; half < 2; ++half) {
                const auto &[upper, lower] = pairs[half];
                _mm512_store_si512(to + 2 * half * kColumnBytes, _mm512_unpacklo_epi16(upper, lower));
                _mm512_store_si512(to + (2 * half + 1) * kColumnBytes, _mm512_unpackhi_epi16(upper, lower));
            }
        }
    }
}

inline __m512i pack_fours(const __m512i integers[4]) {
    const __m512i byte = _mm512_set1_epi32(255);
    const __m512i lower =
        _mm512_or_si512(_mm512_and_si512(integers[0], byte), _mm512_slli_epi32(_mm512_and_si512(integers[1], byte), 8));
    const __m512i upper =
        _mm512_or_si512(_mm512_and_si512(integers[2], byte), _mm512_slli_epi32(_mm512_and_si512(integers[3], byte), 8));
    return _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
}

// Quantizes weights (kInt8Block, 16) times scales of the rows to kParts int8 parts, high and low, and packs each into
// kInt8Chunks tiles of 16 queries by 64 rows. Returns the scales of the high part.
template <int kParts, typename ScaleOf>
__m512 pack_int8_weights(const float *weights, const ScaleOf &scale_of, char *tiles) {
    const auto weight = [&](int64_t row) {
        return _mm512_mul_ps(_mm512_loadu_ps(weights + row * kQueryPadding), _mm512_set1_ps(scale_of(row)));
    };
    __m512 largest = _mm512_set1_ps(1e-33f);
    for (int64_t row = 0; row < kInt8Block; ++row) largest = _mm512_max_ps(largest, weight(row));
    const __m512 steps_per_weight = _mm512_div_ps(_mm512_set1_ps(127), largest);
    for (int64_t chunk = 0; chunk < kInt8Chunks; ++chunk) {
        __m512i words[kParts][16];
        for (int64_t four = 0; four < 16; ++four) {
            __m512i parts[kParts][4];
            for (int64_t i = 0; i < 4; ++i) {
                const __m512 steps = _mm512_mul_ps(weight(chunk * 64 + four * 4 + i), steps_per_weight);
                __m512i low;
                parts[0][i] = split_int8(steps, low);
                if constexpr (kParts == 2) parts[1][i] = low;
            }
            for (int part = 0; part < kParts; ++part) words[part][four] = pack_fours(parts[part]);
        }
        for (int part = 0; part < kParts; ++part) {
            transpose(words[part]);
            std::memcpy(tiles + (part * kInt8Chunks + chunk) * kTileBytes, words[part], kTileBytes);
        }
    }
    return _mm512_div_ps(largest, _mm512_set1_ps(127));
}

// weighted_sum (16, D), columns from `d` on, += weight tiles @ row tiles of 16 columns.
template <bool kWithResidual>
inline void accumulate_columns(const char *weight_tiles, const float *weight_scales, const char *row_tiles,
                               int32_t *sums, float *weighted_sum, int64_t width) {
    constexpr int64_t kPlaneBytes = kInt8Chunks * kTileBytes;
    clear_tile_sums();
    for (int64_t offset = 0; offset < kPlaneBytes; offset += kTileBytes) {
        _tile_loadd(3, row_tiles + offset, 64);
        _tile_loadd(4, weight_tiles + offset, 64);
        _tile_loadd(5, weight_tiles + kPlaneBytes + offset, 64);
        _tile_dpbssd(0, 4, 3);
        _tile_dpbssd(1, 5, 3);
        if constexpr (kWithResidual) {
            _tile_loadd(6, row_tiles + kPlaneBytes + offset, 64);
            _tile_loadd(7, weight_tiles + 2 * kPlaneBytes + offset, 64);
            _tile_dpbssd(2, 7, 6);
        }
    }
    store_tile_sums<kWithResidual>(sums);
    for (int64_t query = 0; query < kQueryPadding; ++query) {
        Floats sum = load_floats(weighted_sum + query * width);
        sum += sum_parts(sums, query) * weight_scales[query];
        if constexpr (kWithResidual) sum += tile_row(sums, 2, query) * weight_scales[kQueryPadding + query];
        store(weighted_sum + query * width, sum);
    }
}

template <bool kWithResidual>
struct AmxInt8Scan {
    static constexpr int64_t kPlanes = kWithResidual ? 2 : 1;

    const patchcaption_bank &bank;
    const QueryBatch &batch;
    ResidualSource &residual_source;
    Partial &partial;
    Int8Scratch scratch;

    // Updates the softmax of a group by rows whose logits are in the scratch memory, and makes its weights ready.
    void weigh(const BlockRows &block, const Rows &rows, int64_t group) const {
        update_softmax(bank, batch, rows, group * kQueryPadding, scratch.logits, partial);
        std::memset(scratch.logits + rows.count * kQueryPadding, 0, 4 * (kInt8Block - rows.count) * kQueryPadding);
        char *tiles = scratch.weight_tiles_of(group);
        float *scales = scratch.weight_scales_of(group);
        const auto scale_of = [&](int64_t row) { return block.scale(row); };
        _mm512_storeu_ps(scales, pack_int8_weights<2>(scratch.logits, scale_of, tiles));
        if constexpr (kWithResidual) {
            const auto residual_scale_of = [&](int64_t row) { return block.residual_scales[row]; };
            tiles += 2 * kInt8Chunks * kTileBytes;
            _mm512_storeu_ps(scales + kQueryPadding, pack_int8_weights<1>(scratch.logits, residual_scale_of, tiles));
        }
    }

    // Adds a block to the weighted sums of groups (count,) whose weights are ready.
    void accumulate(const BlockRows &block, const int64_t *groups, int64_t count, NextBlock &next) const {
        const int64_t width = bank.width;
        interleave_rows<kPlanes>(block.rows, width, 0, scratch.row_tiles);
        if constexpr (kWithResidual) interleave_rows<kPlanes>(block.residual, width, 1, scratch.row_tiles);
        for (int64_t d = 0; d < width; d += kTileRows) {
            const char *row_tiles = scratch.row_tiles + d / kTileRows * kPlanes * kInt8Chunks * kTileBytes;
            for (int64_t index = 0; index < count; ++index) {
                const int64_t group = groups[index];
                accumulate_columns<kWithResidual>(scratch.weight_tiles_of(group), scratch.weight_scales_of(group),
                                                  row_tiles, scratch.tile_sums,
                                                  partial.weighted_sum + group * kQueryPadding * width + d, width);
                next.step();
            }
        }
    }

    void add_gathered(int64_t group) const {
        const Gathered gathered = scratch.gathered_of(group, bank.width);
        const Rows rows = {0, gathered.numbers, scratch.gathered_counts[group]};
        const BlockRows block = {gathered.rows, nullptr, gathered.scales, nullptr};
        std::memcpy(scratch.logits, gathered.logits, 4 * rows.count * kQueryPadding);
        weigh(block, rows, group);
        NextBlock none = {nullptr, nullptr, 0};
        accumulate(block, &group, 1, none);
        scratch.gathered_counts[group] = 0;
    }

    // Copies the rows of a block at `positions` (count,) to those that a group has gathered.
    void gather(const BlockRows &block, int64_t start, const uint32_t *positions, int64_t count, int64_t group) const {
        const Gathered gathered = scratch.gathered_of(group, bank.width);
        int64_t &to = scratch.gathered_counts[group];
        copy_logits(scratch.logits, positions, count, gathered.logits + to * kQueryPadding);
        for (int64_t index = 0; index < count; ++index, ++to) {
            const int64_t row = positions[index];
            gathered.numbers[to] = static_cast<uint32_t>(start + row);
            gathered.scales[to] = block.scale(row);
            std::memcpy(gathered.rows + to * bank.width, block.rows + row * bank.width, bank.width);
        }
    }

    void scan_block(int64_t start, NextBlock next) const {
        uint32_t all[kInt8Block], positions[kInt8Block];
        for (uint32_t row = 0; row < kInt8Block; ++row) all[row] = row;
        const BlockRows block = {static_cast<const int8_t *>(bank.rows) + start * bank.width,
                                 residual_source.block(start, kInt8Block), bank.scales ? bank.scales + start : nullptr,
                                 kWithResidual ? bank.residual_scales + start : nullptr};
        int64_t count = 0;
        for (int64_t group = 0; group * kQueryPadding < batch.count; ++group) {
            if (scratch.gathered_counts[group] > kInt8Block - kMaxGathered) add_gathered(group);  // to make room
            multiply_queries<kWithResidual>(batch, block, bank.inverse_norms + start, group, next, scratch);
            if constexpr (!kWithResidual) {
                const int64_t chosen = find_rows(kInt8Block, group * kQueryPadding, partial, scratch.logits, positions);
                if (chosen <= kMaxGathered) {
                    gather(block, start, positions, chosen, group);
                    continue;
                }
            }
            weigh(block, {start, all, kInt8Block}, group);
            scratch.groups[count++] = group;
        }
        if (count) accumulate(block, scratch.groups, count, next);
    }

    // Scans whole blocks.
    void run(int64_t begin, int64_t end) const {
        const int64_t groups = batch.padded_count / kQueryPadding;
        std::memset(scratch.gathered_counts, 0, 8 * groups);
        pack_int8_queries(batch, scratch);
        // For D/64 lines of each of its rows, a group takes D/64 steps in each 16 rows, then D/16.
        constexpr int64_t kStepsOfGroup = kInt8Block / kTileRows + kInt8TileDepth / kTileRows;
        const int64_t lines_a_step = (kInt8Block + kStepsOfGroup * groups - 1) / (kStepsOfGroup * groups);
        for (int64_t start = begin; start < end; start += kInt8Block) {
            NextBlock next = {nullptr, nullptr, lines_a_step};
            if (start + 2 * kInt8Block <= end) {
                next.from = static_cast<const char *>(bank.rows) + (start + kInt8Block) * bank.width;
                next.end = next.from + kInt8Block * bank.width;
            }
            scan_block(start, next);
        }
        for (int64_t group = 0; group < groups; ++group) {
            if (scratch.gathered_counts[group]) add_gathered(group);
        }
    }
};

}  // namespace
}  // namespace patchcaption
