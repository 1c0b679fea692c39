// Linear layers on Intel AMX, by products of 8-bit tiles: 32 rows by a panel of 32 outputs.
//
// A panel's weights stay in a cache while all rows of a call pass, and the next panel's are fetched a few lines a step.
// What follows a product (scale, bias, GELU, rounding for the next layer, the residual) is done while its sums are in
// the first-level cache.
//
// Shapes: R rows, K inputs and N outputs of a layer, 64 inputs to a tile.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "amx_tiles.h"
#include "linear_interface.h"

namespace patchcaption {
namespace {

constexpr int64_t kRows = 2 * kTileRows;  // of a block
constexpr int64_t kBlockSums = kRows * kPanelWidth;
constexpr int64_t kScratchBytes = 2 * kBlockSums * sizeof(int32_t);
constexpr int64_t kLineBytes = 64;

static_assert(kPanelWidth == 2 * kTileRows && kInputMultiple == 64);

int64_t blocks_of(int64_t rows) { return round_up(rows, kRows) / kRows; }

int64_t tile_bytes(int64_t rows, int64_t width) { return round_up(rows, kRows) * width; }

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

void pack_weights(const int8_t *weights, const LinearLayer &layer) {
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

inline __m512 load_values(const float *from) { return _mm512_loadu_ps(from); }
inline __m512 load_values(const uint16_t *from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline __m512 load_values(__mmask16 mask, const float *from) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load_values(__mmask16 mask, const uint16_t *from) {
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline void store_values(float *to, __mmask16 mask, __m512 values) { _mm512_mask_storeu_ps(to, mask, values); }
inline void store_values(uint16_t *to, __mmask16 mask, __m512 values) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

inline __m128i to_steps(__m512 values) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(values)); }

// Where 16 inputs of a row go.
inline char *place_in_tiles(const QuantizedRows &rows, int64_t depth, int64_t row, int64_t k) {
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
void quantize_row(const LinearLayer &layer, const Element *row, int64_t number, const QuantizedRows &to) {
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
void quantize_rows(const LinearLayer &layer, const Element *inputs, const QuantizedRows &to) {
    for (int64_t row = 0; row < to.rows; ++row) quantize_row(layer, inputs + row * layer.input_width, row, to);
    for (int64_t row = to.rows; row < round_up(to.rows, kRows); ++row) {
        for (int64_t k = 0; k < layer.input_width; k += kInputMultiple) {
            std::memset(place_in_tiles(to, layer.depth(), row, k), 0, kInputMultiple);
        }
    }
}

void quantize(const LinearLayer &layer, const LinearArrays &arrays, int64_t first_row, QuantizedRows &to) {
    const int64_t offset = first_row * layer.input_width;
    if (arrays.is_bf16) quantize_rows(layer, static_cast<const uint16_t *>(arrays.inputs) + offset, to);
    else quantize_rows(layer, static_cast<const float *>(arrays.inputs) + offset, to);
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
void multiply_block(const char *left, const char *below, const char *right, int64_t depth, int32_t *sums,
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

// Calls sink(block) for each block of rows and panel, one behind the products, whose sums take a while to be stored.
template <typename Sink>
void multiply_panels(const LinearLayer &layer, const QuantizedRows &rows, int32_t *scratch, const Sink &sink) {
    const TileScope tiles;
    const int64_t depth = layer.depth(), blocks = blocks_of(rows.rows), panel_bytes = 2 * depth * kTileBytes;
    BlockSums before{0, 0, 0, nullptr};
    for (int64_t panel = 0; panel < layer.panels(); ++panel) {
        const char *right = layer.weights + panel * panel_bytes;
        Fetcher fetcher(right + panel_bytes, panel + 1 < layer.panels() ? panel_bytes : 0, blocks * depth);
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

// x * F(x), where the normal distribution F is 1/2 + x * a polynomial of x**2 between -4.1 and 4.1, and beyond 0 or 1.
inline __m512 gelu(__m512 x) {
    constexpr float kTerms[] = {0.398412019f,    -0.0654393882f,   0.00924947858f, -0.000938115991f,
                                6.51798982e-05f, -2.91050128e-06f, 7.4518141e-08f, -8.25869428e-10f};
    const __m512 limit = _mm512_set1_ps(4.1f), bounded = _mm512_max_ps(_mm512_min_ps(x, limit), -limit);
    const __m512 square = _mm512_mul_ps(bounded, bounded);
    __m512 sum = _mm512_set1_ps(kTerms[7]);
    for (int term = 6; term >= 0; --term) sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(kTerms[term]));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(sum, bounded, _mm512_set1_ps(0.5f)));
}

template <bool kGelu, typename Element>
struct ValueSink {
    const LinearLayer &layer;
    const Element *residual;
    Element *outputs;

    void operator()(const BlockSums &block) const {
        const PanelScales scales(layer, block.panel);
        const int64_t first = block.panel * kPanelWidth;
        for (int half = 0; half < 2; ++half) {
            const __mmask16 mask = existing(first + half * 16, layer.output_width);
            for (int64_t row = 0; row < block.rows; ++row) {
                const int64_t place = (block.first_row + row) * layer.output_width + first + half * 16;
                __m512 values = scales.outputs(block.sums + row * kPanelWidth, half);
                if (kGelu) values = gelu(values);
                if (residual) values = _mm512_add_ps(values, load_values(mask, residual + place));
                store_values(outputs + place, mask, values);
            }
        }
    }
};

template <typename Element>
void multiply_elements(const LinearLayer &layer, const QuantizedRows &rows, int64_t first_row,
                       const LinearArrays &arrays, int32_t *scratch) {
    const int64_t offset = first_row * layer.output_width;
    const Element *residual = static_cast<const Element *>(arrays.residual);
    if (residual) residual += offset;
    Element *outputs = static_cast<Element *>(arrays.outputs) + offset;
    if (layer.has_gelu) multiply_panels(layer, rows, scratch, ValueSink<true, Element>{layer, residual, outputs});
    else multiply_panels(layer, rows, scratch, ValueSink<false, Element>{layer, residual, outputs});
}

void multiply(const LinearLayer &layer, const QuantizedRows &rows, int64_t first_row, const LinearArrays &arrays,
              void *scratch) {
    int32_t *sums = static_cast<int32_t *>(scratch);
    if (arrays.is_bf16) multiply_elements<uint16_t>(layer, rows, first_row, arrays, sums);
    else multiply_elements<float>(layer, rows, first_row, arrays, sums);
}

template <bool kGelu>
struct StepSink {
    const LinearLayer &layer;
    const LinearLayer &next;
    const QuantizedRows &to;

    void operator()(const BlockSums &block) const {
        const PanelScales scales(layer, block.panel);
        const __m512 steps = _mm512_set1_ps(next.steps_per_unit);
        char *place = place_in_tiles(to, next.depth(), block.first_row, block.panel * kPanelWidth);
        const int64_t below = next.depth() * kTileBytes - kTileRows * 64;
        const int64_t stored = block.rows > kTileRows ? kRows : kTileRows;
        for (int64_t row = 0; row < stored; ++row, place += 64) {
            if (row == kTileRows) place += below;
            for (int half = 0; half < 2; ++half) {
                __m512 values = scales.outputs(block.sums + row * kPanelWidth, half);
                if (kGelu) values = gelu(values);
                const __m128i rounded = to_steps(_mm512_mul_ps(values, steps));
                _mm_store_si128(reinterpret_cast<__m128i *>(place + 16 * half), rounded);
            }
        }
    }
};

void multiply_for(const LinearLayer &layer, const QuantizedRows &rows, const LinearLayer &next, QuantizedRows &to,
                  void *scratch) {
    int32_t *sums = static_cast<int32_t *>(scratch);
    if (layer.has_gelu) multiply_panels(layer, rows, sums, StepSink<true>{layer, next, to});
    else multiply_panels(layer, rows, sums, StepSink<false>{layer, next, to});
}

}  // namespace

const LinearVariant kLinearAmx = {"amx",        kRows,    kScratchBytes, has_amx,     tile_bytes,
                                  pack_weights, quantize, multiply,      multiply_for};

}  // namespace patchcaption
