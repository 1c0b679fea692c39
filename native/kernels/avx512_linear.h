// What linear layers share in AVX-512. Everything is local to the including file, as in scratch.h.
//
// Shapes: K inputs and N outputs of a layer.
#pragma once

#include <immintrin.h>

#include <cmath>

#include "linear_interface.h"
#include "scratch.h"

namespace patchcaption {
namespace {

constexpr int64_t kLanes = 16;

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
            for (int64_t output = panel; output < panel + kPanelWidth; output += kLanes) {
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
    for (int64_t output = 0; output < layer.panels() * kPanelWidth; output += kLanes) {
        const __mmask16 outputs = existing(output, stride);
        for (int64_t k = 0; k < layer.input_width; ++k, to += kLanes) {
            const __m128i row = _mm_maskz_loadu_epi8(outputs, weights + k * stride + output);
            _mm_store_si128(reinterpret_cast<__m128i *>(to), row);
        }
    }
}

inline void pack_weights(const int8_t *weights, const LinearLayer &layer) {
    if (layer.rounds_inputs()) pack_tiles(weights, layer);
    else pack_blocks(weights, layer);
}

inline __m512 load_values(const float *from) { return _mm512_loadu_ps(from); }
inline __m512 load_values(const uint16_t *from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m128i to_steps(__m512 values) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(values)); }

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

// Calls store(k, steps) for each 16 inputs of a row, normed if the layer begins so, in steps.
template <typename Element, typename Store>
void scale_row(const LinearLayer &layer, const Element *row, const Store &store) {
    if (!layer.norm_weights) {
        const __m512 per_unit = _mm512_set1_ps(layer.steps_per_unit);
        for (int64_t k = 0; k < layer.input_width; k += 16) store(k, _mm512_mul_ps(load_values(row + k), per_unit));
        return;
    }
    const Normalization norm = normalization(row, layer.input_width, layer.norm_epsilon);
    for (int64_t k = 0; k < layer.input_width; k += 16) {
        const __m512 normalized = _mm512_mul_ps(_mm512_sub_ps(load_values(row + k), norm.mean), norm.inverse);
        const __m512 weights = _mm512_load_ps(layer.norm_weights + k);
        store(k, _mm512_fmadd_ps(normalized, weights, _mm512_load_ps(layer.norm_biases + k)));
    }
}

template <typename Take>
void take_rows(int64_t count, const Take &take) {
    for (int64_t row = 0; row < count; ++row) take(row);
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
