// Intel AMX: products of bfloat16 tiles, at 16 times the rate of AVX-512 multiplications of float32.
//
// A row is split into one or two bfloat16 planes, each with a scale. One plane holds int8 and bfloat16 values exactly,
// two hold float16 exactly and float32 to 16 bits. The residual of int8 and bfloat16 rows is the second plane; that of
// float16 and float32 rows is added before the split. Queries and weights are split into a high and a low part
// likewise, so that a product has a relative error of about 2**-16, comparable to the rounding of a float32 sum. Whole
// blocks of int8 rows of suitable width are left to amx_int8.h.
//
// Shapes: as in scan_interface.h; W is the padded D, G = padded R / 16 the groups of queries.
#include <immintrin.h>

#include <cstdint>

#include "amx_int8.h"
#include "amx_tiles.h"
#include "simd_avx512.h"

namespace patchcaption {
namespace {

constexpr int64_t kChunks = kBlock / kTileDepth;
constexpr float kMaxInverseTemperature = 128;  // above, 16 bits are too few for logits within 1e-3

// The scratch memory of one thread.
struct Scratch {
    char *query_tiles[2];     // high and low part: G x W/32 tiles, pairs of elements along D by queries
    char *row_tiles[2];       // of each plane: kBlock/16 x W/32 tiles, rows by elements along D
    char *row_pair_tiles[2];  // of each plane: kBlock/32 x W/16 tiles, pairs of rows by elements along D, interleaved
    float *plane_sums[2];     // (kBlock, 16) of each plane
    float *weights;           // (kBlock, 16)
    char *weight_tiles[3];    // kChunks tiles each: plane 0 high, plane 0 low, plane 1 high
};

// Hands out the scratch memory; returns how many bytes that takes.
int64_t partition_scratch(const QueryBatch &batch, void *memory, Scratch &scratch) {
    const int64_t block_tiles = 2 * kBlock * batch.padded_width;
    ScratchPartition partition(memory);
    for (char *&tiles : scratch.query_tiles) partition.take(tiles, 2 * batch.padded_count * batch.padded_width);
    for (char *&tiles : scratch.row_tiles) partition.take(tiles, block_tiles);
    for (char *&tiles : scratch.row_pair_tiles) partition.take(tiles, block_tiles);
    for (float *&sums : scratch.plane_sums) partition.take(sums, kBlock * kQueryPadding);
    partition.take(scratch.weights, kBlock * kQueryPadding);
    for (char *&tiles : scratch.weight_tiles) partition.take(tiles, kChunks * kTileBytes);
    return partition.bytes();
}

// In vector registers bfloat16 values are the low halves of 32-bit words, 16 to a vector.

inline __m512i round_to_bf16(__m512 values) {
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(values), _mm512_set1_epi32(0x8000)), 16);
}

inline __m512 bf16_to_floats(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }

// Splits floats into a bfloat16 each and the bfloat16 of what that rounding leaves.
inline void split_bf16(__m512 values, __m512i &high, __m512i &low) {
    high = round_to_bf16(values);
    low = round_to_bf16(_mm512_sub_ps(values, bf16_to_floats(high)));
}

// Packs two bfloat16 values into each word, as tile products expect them.
inline __m512i pack_pairs(__m512i first, __m512i second) {
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

// Packs the queries (padded R, W) into tiles whose rows are pairs of elements along D and whose columns are 16 queries.
// The elements of a pair are 16 apart, as in unpack_block.
void pack_queries(const QueryBatch &batch, const Scratch &scratch) {
    int64_t tile = 0;
    for (int64_t first_query = 0; first_query < batch.padded_count; first_query += kQueryPadding) {
        for (int64_t d = 0; d < batch.padded_width; d += kTileDepth, ++tile) {
            __m512i high[16], low[16];
            for (int64_t column = 0; column < kQueryPadding; ++column) {
                const float *from = batch.unit_queries + (first_query + column) * batch.padded_width + d;
                __m512i highs[2], lows[2];
                split_bf16(_mm512_loadu_ps(from), highs[0], lows[0]);
                split_bf16(_mm512_loadu_ps(from + 16), highs[1], lows[1]);
                high[column] = pack_pairs(highs[0], highs[1]);
                low[column] = pack_pairs(lows[0], lows[1]);
            }
            transpose(high);
            transpose(low);
            std::memcpy(scratch.query_tiles[0] + tile * kTileBytes, high, kTileBytes);
            std::memcpy(scratch.query_tiles[1] + tile * kTileBytes, low, kTileBytes);
        }
    }
}

inline __m512i load_int8_as_bf16(const int8_t *from, __mmask16 mask) {
    const __m512i integers = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from));
    return _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(integers)), 16);  // exact: int8 needs 7 of 8 bits
}

// How rows of a storage are split into planes, with the residual or without.
template <int kStorage, bool kWithResidual>
struct Planes {
    static constexpr bool kFitsBf16 = kStorage == PATCHCAPTION_INT8 || kStorage == PATCHCAPTION_BF16;
    static constexpr int kCount = kFitsBf16 && !kWithResidual ? 1 : 2;

    static inline void split_sum(__m512 values, const int8_t *residual, float residual_step, __mmask16 mask,
                                 __m512i words[2]) {
        if constexpr (kWithResidual) {
            const __m512 steps = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, residual)));
            values = _mm512_add_ps(values, _mm512_mul_ps(steps, _mm512_set1_ps(residual_step)));
        }
        split_bf16(values, words[0], words[1]);
    }

    // Loads the elements in `mask` of 16 from `offset` on, with their residual, into one word vector per plane.
    static inline void load(const patchcaption_bank &bank, int64_t offset, const int8_t *residual, float residual_step,
                            __mmask16 mask, __m512i words[2]) {
        if constexpr (kStorage == PATCHCAPTION_INT8) {
            words[0] = load_int8_as_bf16(static_cast<const int8_t *>(bank.rows) + offset, mask);
        } else if constexpr (kStorage == PATCHCAPTION_BF16) {
            const uint16_t *from = static_cast<const uint16_t *>(bank.rows) + offset;
            words[0] = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
        } else if constexpr (kStorage == PATCHCAPTION_FP16) {
            const uint16_t *from = static_cast<const uint16_t *>(bank.rows) + offset;
            split_sum(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from)), residual, residual_step, mask, words);
        } else {
            const float *from = static_cast<const float *>(bank.rows) + offset;
            split_sum(_mm512_maskz_loadu_ps(mask, from), residual, residual_step, mask, words);
        }
        if constexpr (kWithResidual && kFitsBf16) words[1] = load_int8_as_bf16(residual, mask);
    }
};

// Prefetches the next block, a little at a time while the current one is processed. `rows` is NULL if there is none.
template <int kStorage, bool kWithResidual>
struct Prefetch {
    static constexpr int64_t kBytes = kStorage == PATCHCAPTION_FP32 ? 4 : kStorage == PATCHCAPTION_INT8 ? 1 : 2;

    const char *rows;
    const int8_t *residual;

    void elements(int64_t begin, int64_t end) const {
        if (!rows) return;
        for (int64_t byte = begin * kBytes; byte < end * kBytes; byte += 64) _mm_prefetch(rows + byte, _MM_HINT_T1);
        if constexpr (!kWithResidual) return;
        for (int64_t byte = begin; byte < end; byte += 64) _mm_prefetch(residual + byte, _MM_HINT_T1);
    }
};

// The residual's scale relative to the row's, for storages whose residual is added before the row's scale is applied.
template <int kStorage, bool kWithResidual>
inline float residual_step(const patchcaption_bank &bank, int64_t row) {
    if constexpr (!kWithResidual || Planes<kStorage, kWithResidual>::kFitsBf16) return 0;
    return bank.residual_scales[row] / (bank.scales ? bank.scales[row] : 1.0f);
}

// Unpacks 32 elements of two rows into the row tiles and the row pair tiles of each plane.
template <int kStorage, bool kWithResidual>
inline void unpack_pair(const patchcaption_bank &bank, const int64_t offsets[2], const int8_t *const residual[2],
                        const float residual_steps[2], const __mmask16 masks[2][2], const Scratch &scratch,
                        int64_t row_tiles_offset, int64_t pair_tiles_offset) {
    __m512i words[2][2][2];  // of each row and each 16 elements, the planes
    for (int row = 0; row < 2; ++row) {
        for (int half = 0; half < 2; ++half) {
            Planes<kStorage, kWithResidual>::load(bank, offsets[row] + 16 * half, residual[row] + 16 * half,
                                                  residual_steps[row], masks[row][half], words[row][half]);
        }
    }
    for (int plane = 0; plane < Planes<kStorage, kWithResidual>::kCount; ++plane) {
        for (int i = 0; i < 2; ++i) {
            _mm512_store_si512(scratch.row_tiles[plane] + row_tiles_offset + 64 * i,
                               pack_pairs(words[i][0][plane], words[i][1][plane]));
            _mm512_store_si512(scratch.row_pair_tiles[plane] + pair_tiles_offset + kTileBytes * i,
                               pack_pairs(words[0][i][plane], words[1][i][plane]));
        }
    }
}

// Unpacks a block of rows into tiles of each plane; rows past the last are zero.
template <int kStorage, bool kWithResidual>
void unpack_block(const patchcaption_bank &bank, const QueryBatch &batch, int64_t start, int64_t rows,
                  const int8_t *residual, const Scratch &scratch) {
    const int64_t tiles = batch.padded_width / kTileDepth;
    // Tile by tile, so that writes are contiguous.
    for (int64_t chunk = 0; chunk < kBlock; chunk += kTileDepth) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t d = tile * kTileDepth;
            const uint32_t columns = bank.width - d >= kTileDepth ? ~0u : (1u << (bank.width - d)) - 1;
            for (int64_t row = 0; row < kTileDepth; row += 2) {
                int64_t offsets[2];
                const int8_t *pair_residual[2];
                float residual_steps[2];
                __mmask16 masks[2][2];
                for (int i = 0; i < 2; ++i) {
                    const bool exists = chunk + row + i < rows;
                    const int64_t block_row = exists ? chunk + row + i : 0;
                    offsets[i] = (start + block_row) * bank.width + d;
                    pair_residual[i] = residual + block_row * bank.width + d;
                    residual_steps[i] = residual_step<kStorage, kWithResidual>(bank, start + block_row);
                    masks[i][0] = exists ? static_cast<__mmask16>(columns) : 0;
                    masks[i][1] = exists ? static_cast<__mmask16>(columns >> 16) : 0;
                }
                const int64_t tile_row = chunk + row;
                unpack_pair<kStorage, kWithResidual>(
                    bank, offsets, pair_residual, residual_steps, masks, scratch,
                    (tile_row / kTileRows * tiles + tile) * kTileBytes + row % kTileRows * 64,
                    (chunk / kTileDepth * tiles + tile) * 2 * kTileBytes + row / 2 * 64);
            }
        }
    }
}

// plane_sums[plane] (kBlock, 16) = rows of each plane @ 16 queries.
void multiply_rows(const QueryBatch &batch, int64_t group, int planes, const Scratch &scratch) {
    const int64_t tiles = batch.padded_width / kTileDepth;
    const char *high = scratch.query_tiles[0] + group * tiles * kTileBytes;
    const char *low = scratch.query_tiles[1] + group * tiles * kTileBytes;
    for (int64_t row = 0; row < kBlock; row += 2 * kTileRows) {
        for (int plane = 0; plane < planes; ++plane) {
            const char *upper = scratch.row_tiles[plane] + row / kTileRows * tiles * kTileBytes;
            const char *lower = upper + tiles * kTileBytes;
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t offset = 0; offset < tiles * kTileBytes; offset += kTileBytes) {
                _tile_loadd(4, high + offset, 64);
                _tile_loadd(2, upper + offset, 64);
                _tile_loadd(3, lower + offset, 64);
                _tile_dpbf16ps(0, 2, 4);
                _tile_dpbf16ps(1, 3, 4);
                if (plane == 0) {
                    _tile_loadd(5, low + offset, 64);
                    _tile_dpbf16ps(0, 2, 5);
                    _tile_dpbf16ps(1, 3, 5);
                }
            }
            _tile_stored(0, scratch.plane_sums[plane] + row * kQueryPadding, 64);
            _tile_stored(1, scratch.plane_sums[plane] + (row + kTileRows) * kQueryPadding, 64);
        }
    }
}

inline float plane_scale(const patchcaption_bank &bank, int64_t row, int plane) {
    const bool fits_bf16 = bank.storage == PATCHCAPTION_INT8 || bank.storage == PATCHCAPTION_BF16;
    if (plane == 1 && fits_bf16) return bank.residual_scales[row];
    return bank.scales ? bank.scales[row] : 1.0f;
}

// Writes the logits that the planes' sums give to `weights` (kBlock, 16).
void finish_logits(const patchcaption_bank &bank, const QueryBatch &batch, int64_t start, int64_t rows, int planes,
                   const Scratch &scratch) {
    for (int64_t row = 0; row < rows; ++row) {
        Floats values = load_floats(scratch.plane_sums[0] + row * kQueryPadding) * plane_scale(bank, start + row, 0);
        if (planes == 2) {
            values += load_floats(scratch.plane_sums[1] + row * kQueryPadding) * plane_scale(bank, start + row, 1);
        }
        store(scratch.weights + row * kQueryPadding,
              values * (bank.inverse_norms[start + row] * batch.inverse_temperature));
    }
}

// Packs weights (kBlock, 16), multiplied by each plane's scales, into tiles of 16 queries by 32 rows.
void pack_weights(const patchcaption_bank &bank, int64_t start, int64_t rows, int planes, const Scratch &scratch) {
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
        __m512i high[2][16], low[2][16];
        for (int64_t pair = 0; pair < 16; ++pair) {
            __m512i highs[2][2], lows[2][2];
            for (int64_t i = 0; i < 2; ++i) {
                const int64_t row = chunk * kTileDepth + 2 * pair + i;
                const __m512 weights = _mm512_loadu_ps(scratch.weights + row * kQueryPadding);
                const int64_t bank_row = row < rows ? start + row : start;
                split_bf16(weights * plane_scale(bank, bank_row, 0), highs[0][i], lows[0][i]);
                if (planes == 2) split_bf16(weights * plane_scale(bank, bank_row, 1), highs[1][i], lows[1][i]);
            }
            high[0][pair] = pack_pairs(highs[0][0], highs[0][1]);
            low[0][pair] = pack_pairs(lows[0][0], lows[0][1]);
            if (planes == 2) high[1][pair] = pack_pairs(highs[1][0], highs[1][1]);
        }
        transpose(high[0]);
        transpose(low[0]);
        std::memcpy(scratch.weight_tiles[0] + chunk * kTileBytes, high[0], kTileBytes);
        std::memcpy(scratch.weight_tiles[1] + chunk * kTileBytes, low[0], kTileBytes);
        if (planes == 2) {
            transpose(high[1]);
            std::memcpy(scratch.weight_tiles[2] + chunk * kTileBytes, high[1], kTileBytes);
        }
    }
}

// weighted_sum (16, W) += weight tiles @ row pair tiles.
template <int kStorage, bool kWithResidual>
void accumulate_tiles(const QueryBatch &batch, const Scratch &scratch, Prefetch<kStorage, kWithResidual> prefetch,
                      float *weighted_sum) {
    static_assert(kChunks == 2, "the weights of two chunks stay in tile registers");
    const int64_t chunk_bytes = batch.padded_width / kTileRows * kTileBytes;
    constexpr bool kTwoPlanes = Planes<kStorage, kWithResidual>::kCount == 2;
    _tile_loadd(0, scratch.weight_tiles[0], 64);
    _tile_loadd(1, scratch.weight_tiles[0] + kTileBytes, 64);
    _tile_loadd(2, scratch.weight_tiles[1], 64);
    _tile_loadd(3, scratch.weight_tiles[1] + kTileBytes, 64);
    if constexpr (kTwoPlanes) {
        _tile_loadd(4, scratch.weight_tiles[2], 64);
        _tile_loadd(5, scratch.weight_tiles[2] + kTileBytes, 64);
    }
    for (int64_t d = 0; d < batch.padded_width; d += kTileRows) {
        const char *pairs = scratch.row_pair_tiles[0] + d / kTileRows * kTileBytes;
        _tile_loadd(6, weighted_sum + d, batch.padded_width * 4);
        _tile_loadd(7, pairs, 64);
        _tile_dpbf16ps(6, 0, 7);
        _tile_dpbf16ps(6, 2, 7);
        _tile_loadd(7, pairs + chunk_bytes, 64);
        _tile_dpbf16ps(6, 1, 7);
        _tile_dpbf16ps(6, 3, 7);
        if constexpr (kTwoPlanes) {
            const char *second_pairs = scratch.row_pair_tiles[1] + d / kTileRows * kTileBytes;
            _tile_loadd(7, second_pairs, 64);
            _tile_dpbf16ps(6, 4, 7);
            _tile_loadd(7, second_pairs + chunk_bytes, 64);
            _tile_dpbf16ps(6, 5, 7);
        }
        _tile_stored(6, weighted_sum + d, batch.padded_width * 4);
        prefetch.elements(d * kBlock, (d + kTileRows) * kBlock);  // 1/48 of a block if D is 768
    }
}

template <int kStorage, bool kWithResidual>
void scan_blocks(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
                 ResidualSource &residual_source, Partial &partial, const Scratch &scratch) {
    constexpr int kPlanes = Planes<kStorage, kWithResidual>::kCount;
    pack_queries(batch, scratch);
    uint32_t positions[kBlock];
    for (uint32_t row = 0; row < kBlock; ++row) positions[row] = row;
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t rows = end - start < kBlock ? end - start : kBlock;
        const int8_t *residual = residual_source.block(start, rows);
        Prefetch<kStorage, kWithResidual> prefetch = {nullptr, residual + kBlock * bank.width};
        if (start + 2 * kBlock <= end) {
            prefetch.rows = static_cast<const char *>(bank.rows) + (start + kBlock) * bank.width * prefetch.kBytes;
        }
        unpack_block<kStorage, kWithResidual>(bank, batch, start, rows, residual, scratch);
        for (int64_t first_query = 0; first_query < batch.count; first_query += kQueryPadding) {
            multiply_rows(batch, first_query / kQueryPadding, kPlanes, scratch);
            finish_logits(bank, batch, start, rows, kPlanes, scratch);
            update_softmax(bank, batch, {start, positions, rows}, first_query, scratch.weights, partial);
            std::memset(scratch.weights + rows * kQueryPadding, 0, 4 * (kBlock - rows) * kQueryPadding);
            pack_weights(bank, start, rows, kPlanes, scratch);
            accumulate_tiles<kStorage, kWithResidual>(batch, scratch, prefetch,
                                                      partial.weighted_sum + first_query * batch.padded_width);
            prefetch.rows = nullptr;
        }
    }
}

int64_t scratch_bytes(const patchcaption_bank &bank, const QueryBatch &batch) {
    Scratch scratch;
    const int64_t bytes = partition_scratch(batch, nullptr, scratch);
    if (bank.storage != PATCHCAPTION_INT8) return bytes;
    Int8Scratch int8_scratch;
    const int64_t int8_bytes = partition_int8_scratch(batch, nullptr, int8_scratch);
    return bytes < int8_bytes ? int8_bytes : bytes;
}

template <int kStorage, bool kWithResidual>
void scan_storage(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
                  ResidualSource &residual_source, Partial &partial, void *memory) {
    const TileScope tiles;
    if constexpr (kStorage == PATCHCAPTION_INT8) {
        if (bank.width % kInt8TileDepth == 0) {  // whole tiles, directly from the bank
            AmxInt8Scan<kWithResidual> int8_scan = {bank, batch, residual_source, partial, {}};
            partition_int8_scratch(batch, memory, int8_scan.scratch);
            const int64_t whole_blocks = end - (end - begin) % kInt8Block;
            int8_scan.run(begin, whole_blocks);
            begin = whole_blocks;
        }
    }
    if (begin == end) return;
    Scratch scratch;
    partition_scratch(batch, memory, scratch);
    scan_blocks<kStorage, kWithResidual>(bank, batch, begin, end, residual_source, partial, scratch);
}

void scan(const patchcaption_bank &bank, const QueryBatch &batch, int64_t begin, int64_t end,
          ResidualSource &residual_source, Partial &partial, void *scratch) {
    const bool with_residual = batch.with_residual;
    const Scan selected = [&] {
        if (batch.inverse_temperature > kMaxInverseTemperature) return simd_scan;
        switch (bank.storage) {
            case PATCHCAPTION_FP16:
                return with_residual ? scan_storage<PATCHCAPTION_FP16, true> : scan_storage<PATCHCAPTION_FP16, false>;
            case PATCHCAPTION_BF16:
                return with_residual ? scan_storage<PATCHCAPTION_BF16, true> : scan_storage<PATCHCAPTION_BF16, false>;
            case PATCHCAPTION_INT8:
                return with_residual ? scan_storage<PATCHCAPTION_INT8, true> : scan_storage<PATCHCAPTION_INT8, false>;
            default:
                return with_residual ? scan_storage<PATCHCAPTION_FP32, true> : scan_storage<PATCHCAPTION_FP32, false>;
        }
    }();
    selected(bank, batch, begin, end, residual_source, partial, scratch);
}

}  // namespace

const Variant kAmx = {"amx", 3, has_amx, scratch_bytes, scan, simd_refine};

}  // namespace patchcaption
