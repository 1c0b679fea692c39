// A step of GPT-2 on CPUs with AVX-512, VNNI and BF16.
//
// Rows stay rows. Of layers whose inputs are rounded to 8 bits, fours of weights, made unsigned, are multiplied by
// fours of a row's inputs: 128 times the inputs' sum is too much, and subtracted. Of the others, pairs of bfloat16
// weights are made of 8 bits and their scales, for some inputs at a time, and multiplied by pairs of a row's.
//
// Shapes: as in gpt2_interface.h; K inputs and N outputs of a layer.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "cpu_avx512.h"
#include "gpt2_avx512.h"

namespace patchcaption {
namespace {

constexpr int64_t kPairs = 16;                    // of inputs, that are made bfloat16 together
constexpr int64_t kConvertedBytes = kPairs * 64;  // of their weights for 16 outputs
constexpr int64_t kPackedBytes = kPairs * 32;     // of what these are made of
constexpr int64_t kChunkInputs = 512;             // whose weights for 16 outputs stay in the first-level cache
constexpr int64_t kGroupRows = 64;                // that weights are made bfloat16 for
constexpr int64_t kQuadBytes = 64;                // fours of weights of 16 outputs
constexpr int64_t kQuads = kInputMultiple / 4;    // of a tile of weights
constexpr int64_t kTileBytes = kQuads * kQuadBytes;
constexpr int kMostRows = 8;  // whose sums of 32 outputs, or twice as many of 16, stay in registers

void pack(const int8_t *weights, const LinearLayer &layer) {
    pack_weights(weights, layer);
    if (!layer.rounds_inputs()) return;
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const int64_t bytes = layer.panels() * kPanelWidth * layer.input_width;
    for (char *line = layer.weights; line < layer.weights + bytes; line += kLineBytes) {
        _mm512_store_si512(line, _mm512_xor_si512(_mm512_load_si512(line), sign));
    }
}

inline __m512i broadcast(const char *from) {
    int32_t four_bytes;
    std::memcpy(&four_bytes, from, sizeof four_bytes);
    return _mm512_set1_epi32(four_bytes);
}

// 128 times the sum of a row's inputs.
inline __m512i excess(const char *row, int64_t width) {
    __m512i sum = _mm512_setzero_si512();
    const __m512i weights = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int64_t k = 0; k < width; k += kLineBytes)
        sum = _mm512_dpbusd_epi32(sum, weights, _mm512_loadu_si512(row + k));
    return _mm512_set1_epi32(_mm512_reduce_add_epi32(sum));
}

// The sums (kRows, 32) of a panel's outputs of some rows.
template <int kRows>
void multiply_steps(const char *rows, const LinearLayer &layer, const char *weights, int32_t *sums, Fetcher &fetcher) {
    const int64_t width = layer.input_width;
    __m512i left[kRows], right[kRows];
    for (int row = 0; row < kRows; ++row) left[row] = right[row] = _mm512_setzero_si512();
    for (int64_t tile = 0; tile < layer.depth(); ++tile, weights += 2 * kTileBytes) {
        fetcher.step();
        for (int64_t quad = 0; quad < kQuads; ++quad) {
            const __m512i of_left = _mm512_load_si512(weights + quad * kQuadBytes);
            const __m512i of_right = _mm512_load_si512(weights + kTileBytes + quad * kQuadBytes);
            const char *inputs = rows + tile * kInputMultiple + 4 * quad;
            for (int row = 0; row < kRows; ++row) {
                const __m512i four = broadcast(inputs + row * width);
                left[row] = _mm512_dpbusd_epi32(left[row], of_left, four);
                right[row] = _mm512_dpbusd_epi32(right[row], of_right, four);
            }
        }
    }
    for (int row = 0; row < kRows; ++row, sums += kPanelWidth) {
        const __m512i too_much = excess(rows + row * width, width);
        _mm512_store_si512(sums, _mm512_sub_epi32(left[row], too_much));
        _mm512_store_si512(sums + kLanes, _mm512_sub_epi32(right[row], too_much));
    }
}

// Adds the products of some inputs to the sums (kRows, 16) of 16 outputs, kPanelWidth apart.
template <int kRows>
void add_products(const char *rows, int64_t row_bytes, const char *weights, int64_t inputs, float *sums) {
    __m512 total[kRows];
    for (int row = 0; row < kRows; ++row) total[row] = _mm512_load_ps(sums + row * kPanelWidth);
    for (int64_t pair = 0; pair < inputs / 2; ++pair) {
        const __m512i of_pair = _mm512_load_si512(weights + pair * kLineBytes);
        for (int row = 0; row < kRows; ++row) {
            const __m512i two = broadcast(rows + row * row_bytes + 4 * pair);
            total[row] = _mm512_dpbf16_ps(total[row], (__m512bh)of_pair, (__m512bh)two);
        }
    }
    for (int row = 0; row < kRows; ++row) _mm512_store_ps(sums + row * kPanelWidth, total[row]);
}

// Calls work<n>(first) for parts of n rows that some rows consist of.
template <int kRows, typename Work>
void in_parts(int64_t first, int64_t count, const Work &work) {
    for (; count - first >= kRows; first += kRows) work(std::integral_constant<int, kRows>(), first);
    if constexpr (kRows > 1) {
        if (first < count) in_parts<kRows / 2>(first, count, work);
    }
}

struct Avx512Products {
    struct Scratch {
        int32_t *sums;      // (kMostRows, kPanelWidth)
        float *group_sums;  // (kGroupRows, kPanelWidth)
        char *converted;    // a chunk's weights for 16 outputs

        explicit Scratch(ScratchPartition &partition) {
            partition.take(sums, kMostRows * kPanelWidth);
            partition.take(group_sums, kGroupRows * kPanelWidth);
            partition.take(converted, kChunkInputs / 2 * kLineBytes);
        }
    };

    static int64_t tile_bytes(const LinearLayer &layer, int64_t rows) { return rows * row_bytes(layer); }

    static void store_bf16(char *rows, const LinearLayer &layer, int64_t row, int64_t k, __m512 values) {
        char *place = rows + row * row_bytes(layer) + 2 * k;
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(place), (__m256i)_mm512_cvtneps_pbh(values));
    }

    static void store_steps(char *rows, const LinearLayer &layer, int64_t row, int64_t k, __m512 steps) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(rows + row * row_bytes(layer) + k), to_steps(steps));
    }

    template <typename Sink>
    static void multiply(const LinearLayer &layer, const TileRows &rows, PanelRange panels, const Scratch &scratch,
                         const Sink &sink) {
        const int64_t groups = (rows.rows + kGroupRows - 1) / kGroupRows, depth = layer.depth();
        const int64_t parts = layer.rounds_inputs() ? (rows.rows + kMostRows - 1) / kMostRows : 2 * groups;
        const int64_t panel_bytes = kPanelWidth * layer.input_width;
        for (int64_t panel = panels.first; panel < panels.last; ++panel) {
            const char *weights = layer.weights + panel * panel_bytes;
            Fetcher fetcher(weights + panel_bytes, panel + 1 < panels.last ? panel_bytes : 0, parts * depth);
            if (layer.rounds_inputs()) multiply_in_8_bits(layer, rows, panel, weights, fetcher, scratch, sink);
            else multiply_in_bf16(layer, rows, panel, weights, fetcher, scratch, sink);
        }
    }

  private:
    static int64_t row_bytes(const LinearLayer &layer) { return layer.input_width * (layer.rounds_inputs() ? 1 : 2); }

    template <typename Sink>
    static void multiply_in_8_bits(const LinearLayer &layer, const TileRows &rows, int64_t panel, const char *weights,
                                   Fetcher &fetcher, const Scratch &scratch, const Sink &sink) {
        const ScaledSums outputs(scratch.sums, layer, panel);
        in_parts<kMostRows>(0, rows.rows, [&](auto count, int64_t first) {
            multiply_steps<count>(rows.tiles + first * layer.input_width, layer, weights, scratch.sums, fetcher);
            take_rows(count, sink(Block{first, panel * kPanelWidth}, outputs));
        });
    }

    template <typename Sink>
    static void multiply_in_bf16(const LinearLayer &layer, const TileRows &rows, int64_t panel, const char *weights,
                                 Fetcher &fetcher, const Scratch &scratch, const Sink &sink) {
        const int64_t output = panel * kPanelWidth;
        const BiasedSums outputs(scratch.group_sums, layer, panel);
        for (int64_t first = 0; first < rows.rows; first += kGroupRows) {
            const int64_t left = rows.rows - first, count = left < kGroupRows ? left : kGroupRows;
            std::memset(scratch.group_sums, 0, count * kPanelWidth * sizeof(float));
            for (int half = 0; half < 2; ++half) {
                const char *packed = weights + half * kLanes * layer.input_width;
                multiply_half({rows.tiles + first * row_bytes(layer), count}, layer, output + half * kLanes, packed,
                              fetcher, scratch.converted, scratch.group_sums + half * kLanes);
            }
            take_rows(count, sink(Block{first, output}, outputs));
        }
    }

    // Adds the products of 16 outputs to their sums.
    static void multiply_half(const TileRows &rows, const LinearLayer &layer, int64_t output, const char *packed,
                              Fetcher &fetcher, char *converted, float *sums) {
        const int64_t scale_stride = layer.panels() * kPanelWidth;
        for (int64_t k = 0; k < layer.input_width; k += kChunkInputs) {
            const int64_t left = layer.input_width - k, inputs = left < kChunkInputs ? left : kChunkInputs;
            for (int64_t i = 0; i < inputs; i += 2 * kPairs, packed += kPackedBytes) {
                if (i % kInputMultiple == 0) fetcher.step();
                const __m512 scales =
                    _mm512_load_ps(layer.block_scales + (k + i) / kInputMultiple * scale_stride + output);
                convert(packed, scales, converted + i / (2 * kPairs) * kConvertedBytes);
            }
            in_parts<2 * kMostRows>(0, rows.rows, [&](auto count, int64_t first) {
                add_products<count>(rows.tiles + first * row_bytes(layer) + 2 * k, row_bytes(layer), converted, inputs,
                                    sums + first * kPanelWidth);
            });
        }
    }
};

}  // namespace

const Packing kPackedAvx512 = {"avx512bf16", has_avx512_vnni_bf16, pack};
const Gpt2Variant kGpt2Avx512 = Steps<Avx512Products>::variant(kPackedAvx512);

}  // namespace patchcaption
