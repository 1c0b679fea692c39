// Linear layers on Intel AMX, by products of 8-bit tiles: 32 rows by a panel of 32 outputs.
//
// A panel's weights stay in a cache while all rows of a call pass, and the next panel's are fetched a few lines a step.
// What follows a product (scale, bias, GELU, rounding for the next layer, the residual) is done between the products of
// the next block, while its sums are in the first-level cache.
//
// Shapes: R rows, K inputs and N outputs of a layer, 64 inputs to a tile.
#include <immintrin.h>

#include "amx_linear.h"

namespace patchcaption {
namespace {

constexpr int64_t kScratchBytes = 2 * kBlockSums * sizeof(int32_t);

int64_t tile_bytes(int64_t rows, int64_t width) { return round_up(rows, kRows) * width; }

inline __m512 load_values(__mmask16 mask, const float *from) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load_values(__mmask16 mask, const uint16_t *from) {
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline void store_values(float *to, __mmask16 mask, __m512 values) { _mm512_mask_storeu_ps(to, mask, values); }
inline void store_values(uint16_t *to, __mmask16 mask, __m512 values) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

// Stores 32 outputs past the caches.
inline void stream_values(float *to, __m512 first, __m512 later) {
    _mm512_stream_ps(to, first);
    _mm512_stream_ps(to + 16, later);
}
inline void stream_values(uint16_t *to, __m512 first, __m512 later) {
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to), (__m512i)_mm512_cvtne2ps_pbh(later, first));
}

void quantize(const LinearLayer &layer, const LinearArrays &arrays, int64_t first_row, TileRows &to) {
    const int64_t offset = first_row * layer.input_width;
    if (arrays.is_bf16) quantize_rows(layer, static_cast<const uint16_t *>(arrays.inputs) + offset, to);
    else quantize_rows(layer, static_cast<const float *>(arrays.inputs) + offset, to);
}

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
    bool is_streamed;

    auto operator()(const BlockSums &block) const {
        const int64_t stride = layer.output_width, first = block.panel * kPanelWidth;
        return [=, *this, scales = PanelScales(layer, block.panel), place = block.first_row * stride + first,
                mask = existing(first, stride), later_mask = existing(first + 16, stride)](int64_t row) {
            const int64_t offset = place + row * stride;
            const auto value = [&](int half, __mmask16 existing_values) {
                __m512 values = scales.outputs(block.sums + row * kPanelWidth, half);
                if (kGelu) values = gelu(values);
                if (!residual) return values;
                return _mm512_add_ps(values, load_values(existing_values, residual + offset + half * 16));
            };
            const __m512 values = value(0, mask), later = value(1, later_mask);
            if (is_streamed) return stream_values(outputs + offset, values, later);
            store_values(outputs + offset, mask, values);
            store_values(outputs + offset + 16, later_mask, later);
        };
    }
};

template <typename Element>
void multiply_elements(const LinearLayer &layer, const TileRows &rows, int64_t first_row, const LinearArrays &arrays,
                       int32_t *scratch) {
    const int64_t offset = first_row * layer.output_width;
    const Element *residual = static_cast<const Element *>(arrays.residual);
    if (residual) residual += offset;
    Element *outputs = static_cast<Element *>(arrays.outputs) + offset;
    if (layer.has_gelu)
        multiply_panels(layer, rows, {0, layer.panels()}, scratch,
                        ValueSink<true, Element>{layer, residual, outputs, arrays.is_streamed});
    else
        multiply_panels(layer, rows, {0, layer.panels()}, scratch,
                        ValueSink<false, Element>{layer, residual, outputs, arrays.is_streamed});
    if (arrays.is_streamed) _mm_sfence();
}

void multiply(const LinearLayer &layer, const TileRows &rows, int64_t first_row, const LinearArrays &arrays,
              void *scratch) {
    int32_t *sums = static_cast<int32_t *>(scratch);
    if (arrays.is_bf16) multiply_elements<uint16_t>(layer, rows, first_row, arrays, sums);
    else multiply_elements<float>(layer, rows, first_row, arrays, sums);
}

template <bool kGelu>
struct StepSink {
    const LinearLayer &layer;
    const LinearLayer &next;
    const TileRows &to;

    auto operator()(const BlockSums &block) const {
        char *place = place_in_tiles(to, next.depth(), block.first_row, block.panel * kPanelWidth);
        return [=, scales = PanelScales(layer, block.panel), steps = _mm512_set1_ps(next.steps_per_unit),
                below = next.depth() * kTileBytes](int64_t row) {
            char *halves = place + row / kTileRows * below + row % kTileRows * 64;
            for (int half = 0; half < 2; ++half) {
                __m512 values = scales.outputs(block.sums + row * kPanelWidth, half);
                if (kGelu) values = gelu(values);
                const __m128i rounded = to_steps(_mm512_mul_ps(values, steps));
                _mm_store_si128(reinterpret_cast<__m128i *>(halves + 16 * half), rounded);
            }
        };
    }
};

void multiply_for(const LinearLayer &layer, const TileRows &rows, const LinearLayer &next, TileRows &to,
                  void *scratch) {
    int32_t *sums = static_cast<int32_t *>(scratch);
    pad_rows(next, to);
    if (layer.has_gelu) multiply_panels(layer, rows, {0, layer.panels()}, sums, StepSink<true>{layer, next, to});
    else multiply_panels(layer, rows, {0, layer.panels()}, sums, StepSink<false>{layer, next, to});
}

}  // namespace

const Packing kPackedAmx = {"amx", has_amx, pack_weights};
const LinearVariant kLinearAmx = {&kPackedAmx, kRows, kScratchBytes, tile_bytes, quantize, multiply, multiply_for};

}  // namespace patchcaption
