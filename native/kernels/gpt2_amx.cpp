// A step of GPT-2 on Intel AMX.
//
// Layers whose inputs are rounded to 8 bits are products of 8-bit tiles. Those of the others are products of bfloat16
// tiles: of a tile of weights at a time, which is made of 8 bits and their scales, and multiplies up to 64 rows.
//
// Shapes: as in gpt2_interface.h; K inputs and N outputs of a layer.
#include <immintrin.h>

#include "amx_linear.h"
#include "gpt2_avx512.h"

namespace patchcaption {
namespace {

constexpr int64_t kGroupRows = 4 * kTileRows;     // whose sums of 16 outputs stay in tile registers
constexpr int64_t kPackedBytes = kTileBytes / 2;  // of what a tile of bfloat16 weights is made of

// Of 16 outputs: the sums (16 * kTiles, 16) of rows' products, kPanelWidth apart.
template <int kTiles>
void multiply_group(const char *left, const char *packed, const float *scales, const LinearLayer &layer,
                    char *converted, float *sums, Fetcher &fetcher) {
    const int64_t depth = layer.input_width / kTileDepth, below = depth * kTileBytes;
    const int64_t scale_stride = layer.panels() * kPanelWidth;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    convert(packed, _mm512_load_ps(scales), converted);
    for (int64_t i = 0; i < depth; ++i) {
        fetcher.step();
        const char *right = converted + i % 2 * kTileBytes;
        if (i + 1 < depth) {
            const __m512 next = _mm512_load_ps(scales + (i + 1) * kTileDepth / kInputMultiple * scale_stride);
            convert(packed + (i + 1) * kPackedBytes, next, converted + (i + 1) % 2 * kTileBytes);
        }
        const char *rows = left + i * kTileBytes;
        _tile_loadd(7, right, 64);
        _tile_loadd(4, rows, 64);
        _tile_dpbf16ps(0, 4, 7);
        if constexpr (kTiles > 1) {
            _tile_loadd(5, rows + below, 64);
            _tile_dpbf16ps(1, 5, 7);
        }
        if constexpr (kTiles > 2) {
            _tile_loadd(6, rows + 2 * below, 64);
            _tile_dpbf16ps(2, 6, 7);
        }
        if constexpr (kTiles > 3) {
            _tile_loadd(4, rows + 3 * below, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    constexpr int64_t kStride = 4 * kPanelWidth;
    _tile_stored(0, sums, kStride);
    if constexpr (kTiles > 1) _tile_stored(1, sums + kTileRows * kPanelWidth, kStride);
    if constexpr (kTiles > 2) _tile_stored(2, sums + 2 * kTileRows * kPanelWidth, kStride);
    if constexpr (kTiles > 3) _tile_stored(3, sums + 3 * kTileRows * kPanelWidth, kStride);
}

constexpr decltype(&multiply_group<1>) kMultiplyGroup[] = {multiply_group<1>, multiply_group<2>, multiply_group<3>,
                                                           multiply_group<4>};

struct AmxProducts {
    struct Scratch {
        int32_t *sums;      // two blocks
        float *group_sums;  // (kGroupRows, kPanelWidth)
        char *converted;    // two tiles

        explicit Scratch(ScratchPartition &partition) {
            partition.take(sums, 2 * kBlockSums);
            partition.take(group_sums, kGroupRows * kPanelWidth);
            partition.take(converted, 2 * kTileBytes);
        }
    };

    static int64_t tile_bytes(const LinearLayer &layer, int64_t rows) {
        return round_up(rows, kRows) * layer.input_width * (layer.rounds_inputs() ? 1 : 2);
    }

    static void store_bf16(char *tiles, const LinearLayer &layer, int64_t row, int64_t k, __m512 values) {
        char *place = tiles + (row / kTileRows * (layer.input_width / kTileDepth) + k / kTileDepth) * kTileBytes +
                      row % kTileRows * 64 + k % kTileDepth * 2;
        _mm256_store_si256(reinterpret_cast<__m256i *>(place), (__m256i)_mm512_cvtneps_pbh(values));
    }

    static void store_steps(char *tiles, const LinearLayer &layer, int64_t row, int64_t k, __m512 steps) {
        patchcaption::store_steps({tiles, 0}, layer, row, k, steps);
    }

    template <typename Sink>
    static void multiply(const LinearLayer &layer, const TileRows &rows, PanelRange panels, const Scratch &scratch,
                         const Sink &sink) {
        if (!layer.rounds_inputs()) return multiply_in_bf16(layer, rows, panels, scratch, sink);
        multiply_panels(layer, rows, panels, scratch.sums, [&](const BlockSums &block) {
            return sink(Block{block.first_row, block.panel * kPanelWidth}, ScaledSums(block.sums, layer, block.panel));
        });
    }

    template <typename Sink>
    static void multiply_in_bf16(const LinearLayer &layer, const TileRows &rows, PanelRange panels,
                                 const Scratch &scratch, const Sink &sink) {
        const TileScope tiles;
        const int64_t row_bytes = 2 * layer.input_width, half_bytes = kTileRows * layer.input_width;
        const int64_t groups = (rows.rows + kGroupRows - 1) / kGroupRows;
        float *sums = scratch.group_sums;
        for (int64_t panel = panels.first; panel < panels.last; ++panel) {
            const char *packed = layer.weights + 2 * panel * half_bytes;
            Fetcher fetcher(packed + 2 * half_bytes, panel + 1 < panels.last ? 2 * half_bytes : 0,
                            groups * row_bytes / kLineBytes * 2);
            const BiasedSums outputs(sums, layer, panel);
            for (int64_t first = 0; first < rows.rows; first += kGroupRows) {
                const int64_t left = rows.rows - first, count = left < kGroupRows ? left : kGroupRows;
                const auto multiply = kMultiplyGroup[(count + kTileRows - 1) / kTileRows - 1];
                for (int half = 0; half < 2; ++half) {
                    const float *scales = layer.block_scales + panel * kPanelWidth + half * kTileRows;
                    multiply(rows.tiles + first * row_bytes, packed + half * half_bytes, scales, layer,
                             scratch.converted, sums + half * kTileRows, fetcher);
                }
                take_rows(count, sink(Block{first, panel * kPanelWidth}, outputs));
            }
        }
    }
};

}  // namespace

const Gpt2Variant kGpt2Amx = Steps<AmxProducts>::variant(kPackedAmx);

}  // namespace patchcaption
