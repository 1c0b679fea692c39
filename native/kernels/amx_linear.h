// What linear layers of 8-bit tiles share on Intel AMX: how weights and rows are packed, and products of blocks of 32
// rows by panels of 32 outputs. Everything is local to the including file, as in amx_tiles.h.
//
// Shapes: R rows, K inputs and N outputs of a layer, 64 inputs to a tile.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "amx_tiles.h"
#include "linear_interface.h"

namespace patchcaption {
namespace {

constexpr int64_t kRows = 2 * kTileRows;  // of a block
constexpr int64_t kBlockSums = kRows * kPanelWidth;
constexpr int64_t kLineBytes = 64;

static_assert(kPanelWidth == 2 * kTileRows && kInputMultiple == 64);

inline int64_t blocks_of(int64_t rows) { return round_up(rows, kRows) / kRows; }

inline __mmask16 existing(int64_t first, int64_t count) {
    return first + 16 <= count ? 0xffff : first >= count ? 0 : static_cast<__mmask16>((1 << (count - first)) - 1);
}

// A row of a tile of weights: 4 inputs of each of 16 outputs.
inline void pack_row(const int8_t *weights, int64_t stride, __mmask16 outputs, char *to) {
    __m128i rows[4], pairs[4];
    for (int i = 0; i < 4; ++i) rows[i] = _mm_maskz_loadu_epi8(outputs, weights + i * stride);
    pairs[0] = _mm_unpacklo_epi8(rows[0], rows[1]);
    pairs[1] = _mm_unpacklo_epi8(rows[2], rows[3]);
    pairs[2] = _mm_unpackhi_epi8(rows[0], rows[1]);
    pairs[3] = _mm_unpackhi_epi8(rows[2], rows[3]);
    __m128i *quads = reinterpret_cast<__m128i *>(to);
    _mm_store_si128(quads, _mm_unpacklo_epi16(pairs[0], pairs[1]));
    _mm_store_si128(quads + 1, _mm_unpackhi_epi16(pairs[0], pairs[1]));
    _mm_store_si128(quads + 2, _mm_unpacklo_epi16(pairs[2], pairs[3]));
    _mm_store_si128(quads + 3, _mm_unpackhi_epi16(pairs[2], pairs[3]));
}

inline void pack_tiles(const int8_t *weights, const LinearLayer &layer) {
    const int64_t stride = layer.output_width;
    char *to = layer.weights;
    for (int64_t panel = 0; panel < layer.panels() * kPanelWidth; panel += kPanelWidth) {
        for (int64_t k = 0; k < layer.input_width; k += kInputMultiple) {
            for (int64_t output = panel; output < panel + kPanelWidth; output += kTileRows) {
                const __mmask16 outputs = existing(output, stride);
                for (int64_t row = k; row < k + kInputMultiple; row += 4, to += kLineBytes) {
                    pack_row(weights + row * stride + output, stride, outputs, to);
                }
            }
        }
    }
}

// For each 16 outputs pairs of inputs: the weights of the even one, then those of the odd one.
inline void pack_blocks(const int8_t *weights, const LinearLayer &layer) {
    const int64_t stride = layer.output_width;
    char *to = layer.weights;
    for (int64_t output = 0; output < layer.panels() * kPanelWidth; output += kTileRows) {
        const __mmask16 outputs = existing(output, stride);
        for (int64_t k = 0; k < layer.input_width; ++k, to += kTileRows) {
            const __m128i row = _mm_maskz_loadu_epi8(outputs, weights + k * stride + output);
            _mm_store_si128(reinterpret_cast<__m128i *>(to), row);
        }
    }
}

inline __m512 load_values(const float *from) { return _mm512_loadu_ps(from); }
inline __m512 load_values(const uint16_t *from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m128i to_steps(__m512 values) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(values)); }

// Where 16 inputs of a row go.
inline char *place_in_tiles(const TileRows &rows, int64_t depth, int64_t row, int64_t k) {
    return rows.tiles + (row / kTileRows * depth + k / kInputMultiple) * kTileBytes + row % kTileRows * 64 +
           k % kInputMultiple;
}

// The mean of a row and the inverse of its standard deviation.
struct Normalization {
    __m512 mean, inverse;
};

template <typename Element>
Normalization normalization(const Element *row, int64_t width, float epsilon) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += 16) sum = _mm512_add_ps(sum, load_values(row + k));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(width));
    for (int64_t k = 0; k < width; k += 16) {
        const __m512 difference = _mm512_sub_ps(load_values(row + k), mean);
        squares = _mm512_fmadd_ps(difference, difference, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    return {mean, _mm512_set1_ps(1 / std::sqrt(variance + epsilon))};
}

template <typename Element>
void quantize_row(const LinearLayer &layer, const Element *row, int64_t number, const TileRows &to) {
    const int64_t depth = layer.depth();
    if (!layer.norm_weights) {
        const __m512 steps = _mm512_set1_ps(layer.steps_per_unit);
        for (int64_t k = 0; k < layer.input_width; k += 16) {
            const __m128i rounded = to_steps(_mm512_mul_ps(load_values(row + k), steps));
            _mm_store_si128(reinterpret_cast<__m128i *>(place_in_tiles(to, depth, number, k)), rounded);
        }
        return;
    }
    const Normalization norm = normalization(row, layer.input_width, layer.norm_epsilon);
    for (int64_t k = 0; k < layer.input_width; k += 16) {
        const __m512 normalized = _mm512_mul_ps(_mm512_sub_ps(load_values(row + k), norm.mean), norm.inverse);
        const __m512 weights = _mm512_load_ps(layer.norm_weights + k);
        const __m512 steps = _mm512_fmadd_ps(normalized, weights, _mm512_load_ps(layer.norm_biases + k));
        _mm_store_si128(reinterpret_cast<__m128i *>(place_in_tiles(to, depth, number, k)), to_steps(steps));
    }
}

template <typename Element>
void quantize_rows(const LinearLayer &layer, const Element *inputs, const TileRows &to) {
    for (int64_t row = 0; row < to.rows; ++row) quantize_row(layer, inputs + row * layer.input_width, row, to);
    for (int64_t row = to.rows; row < round_up(to.rows, kRows); ++row) {
        for (int64_t k = 0; k < layer.input_width; k += kInputMultiple) {
            std::memset(place_in_tiles(to, layer.depth(), row, k), 0, kInputMultiple);
        }
    }
}

// Fetches memory into the second-level cache, a few lines a step.
class Fetcher {
  public:
    Fetcher(const char *first, int64_t bytes, int64_t steps)
        : next_(first), end_(first + bytes), step_bytes_(round_up(bytes, kLineBytes * steps) / steps) {}

    void step() {
        const char *last = end_ - next_ < step_bytes_ ? end_ : next_ + step_bytes_;
        for (; next_ < last; next_ += kLineBytes) _mm_prefetch(next_, _MM_HINT_T1);
    }

  private:
    const char *next_, *end_;
    int64_t step_bytes_;
};

// The sums (32, 32) of a block: the products of `depth` tiles. Blocks of up to 16 rows have none `below`.
inline void multiply_block(const char *left, const char *below, const char *right, int64_t depth, int32_t *sums,
                           Fetcher &fetcher) {
    constexpr int64_t kStride = 4 * kPanelWidth;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (below) {
        for (int64_t i = 0; i < depth; ++i) {
            fetcher.step();
            _tile_loadd(4, left + i * kTileBytes, 64);
            _tile_loadd(6, right + 2 * i * kTileBytes, 64);
            _tile_loadd(7, right + (2 * i + 1) * kTileBytes, 64);
            _tile_loadd(5, below + i * kTileBytes, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        _tile_stored(2, sums + kTileRows * kPanelWidth, kStride);
        _tile_stored(3, sums + kTileRows * kPanelWidth + kTileRows, kStride);
    } else {
        for (int64_t i = 0; i < depth; ++i) {
            fetcher.step();
            _tile_loadd(4, left + i * kTileBytes, 64);
            _tile_loadd(6, right + 2 * i * kTileBytes, 64);
            _tile_loadd(7, right + (2 * i + 1) * kTileBytes, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
        }
    }
    _tile_stored(0, sums, kStride);
    _tile_stored(1, sums + kTileRows, kStride);
}

// The sums of a block of rows and a panel.
struct BlockSums {
    int64_t first_row, rows, panel;
    const int32_t *sums;
};

// Calls sink(block) for each block of rows and some panels, one behind the products, whose sums take a while to be
// stored.
template <typename Sink>
void multiply_panels(const LinearLayer &layer, const TileRows &rows, PanelRange panels, int32_t *scratch,
                     const Sink &sink) {
    const TileScope tiles;
    const int64_t depth = layer.depth(), blocks = blocks_of(rows.rows), panel_bytes = 2 * depth * kTileBytes;
    BlockSums before{0, 0, 0, nullptr};
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        const char *right = layer.weights + panel * panel_bytes;
        Fetcher fetcher(right + panel_bytes, panel + 1 < panels.last ? panel_bytes : 0, blocks * depth);
        for (int64_t block = 0; block < blocks; ++block) {
            const char *left = rows.tiles + 2 * block * depth * kTileBytes;
            const int64_t first_row = block * kRows, count = rows.rows - first_row;
            int32_t *sums = before.sums == scratch ? scratch + kBlockSums : scratch;
            multiply_block(left, count > kTileRows ? left + depth * kTileBytes : nullptr, right, depth, sums, fetcher);
            if (before.sums) sink(before);
            before = {first_row, count < kRows ? count : kRows, panel, sums};
        }
    }
    if (before.sums) sink(before);
}

// The outputs of a panel by their sums.
struct PanelScales {
    __m512 scales[2], biases[2];

    PanelScales(const LinearLayer &layer, int64_t panel) {
        for (int half = 0; half < 2; ++half) {
            scales[half] = _mm512_load_ps(layer.scales + panel * kPanelWidth + half * 16);
            biases[half] = _mm512_load_ps(layer.biases + panel * kPanelWidth + half * 16);
        }
    }

    __m512 outputs(const int32_t *sums, int half) const {
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + half * 16)), scales[half], biases[half]);
    }
};

}  // namespace
}  // namespace patchcaption
