// What linear layers of 8-bit tiles share on Intel AMX: how weights and rows are packed, and products of blocks of 32
// rows by panels of 32 outputs. Everything is local to the including file, as in amx_tiles.h.
//
// Shapes: R rows, K inputs and N outputs of a layer, 64 inputs to a tile.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "amx_tiles.h"
#include "avx512_linear.h"

namespace patchcaption {
namespace {

constexpr int64_t kRows = 2 * kTileRows;  // of a block
constexpr int64_t kBlockSums = kRows * kPanelWidth;

static_assert(kPanelWidth == 2 * kTileRows && kInputMultiple == 64);

inline int64_t blocks_of(int64_t rows) { return round_up(rows, kRows) / kRows; }

// Where 16 inputs of a row go.
inline char *place_in_tiles(const TileRows &rows, int64_t depth, int64_t row, int64_t k) {
    return rows.tiles + (row / kTileRows * depth + k / kInputMultiple) * kTileBytes + row % kTileRows * 64 +
           k % kInputMultiple;
}

// Puts 16 inputs of a row where they go.
inline void store_steps(const TileRows &rows, const LinearLayer &layer, int64_t row, int64_t k, __m512 steps) {
    char *place = place_in_tiles(rows, layer.depth(), row, k);
    _mm_store_si128(reinterpret_cast<__m128i *>(place), to_steps(steps));
}

// Fills the last block of rows with zeros.
inline void pad_rows(const LinearLayer &layer, const TileRows &rows) {
    for (int64_t row = rows.rows; row < round_up(rows.rows, kRows); ++row) {
        for (int64_t k = 0; k < layer.input_width; k += kInputMultiple) {
            std::memset(place_in_tiles(rows, layer.depth(), row, k), 0, kInputMultiple);
        }
    }
}

template <typename Element>
void quantize_rows(const LinearLayer &layer, const Element *inputs, const TileRows &to) {
    for (int64_t row = 0; row < to.rows; ++row) {
        scale_row(layer, inputs + row * layer.input_width,
                  [&](int64_t k, __m512 steps) { store_steps(to, layer, row, k, steps); });
    }
    pad_rows(layer, to);
}

// The sums (32, 32) of a block: the products of `depth` tiles. Blocks of up to 16 rows have none `below`. After each
// step `between` is called, which the processor does beside the products.
template <typename Between>
inline void multiply_block(const char *left, const char *below, const char *right, int64_t depth, int32_t *sums,
                           const Between &between) {
    constexpr int64_t kStride = 4 * kPanelWidth;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (below) {
        for (int64_t i = 0; i < depth; ++i) {
            _tile_loadd(4, left + i * kTileBytes, 64);
            _tile_loadd(6, right + 2 * i * kTileBytes, 64);
            _tile_loadd(7, right + (2 * i + 1) * kTileBytes, 64);
            _tile_loadd(5, below + i * kTileBytes, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
            between();
        }
        _tile_stored(2, sums + kTileRows * kPanelWidth, kStride);
        _tile_stored(3, sums + kTileRows * kPanelWidth + kTileRows, kStride);
    } else {
        for (int64_t i = 0; i < depth; ++i) {
            _tile_loadd(4, left + i * kTileBytes, 64);
            _tile_loadd(6, right + 2 * i * kTileBytes, 64);
            _tile_loadd(7, right + (2 * i + 1) * kTileBytes, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            between();
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

// Calls take(row) for the rows from 0 to `count`, about as many at each of some steps.
template <typename Take>
class RowsInSteps {
  public:
    RowsInSteps(int64_t count, int64_t steps, const Take &take) : count_(count), steps_(steps), take_(take) {}

    void step() {
        for (due_ += count_; due_ >= steps_; due_ -= steps_) take_(row_++);
    }

  private:
    int64_t count_, steps_, due_ = 0, row_ = 0;
    const Take &take_;
};

// For each block of rows and some panels, sink(block) returns what takes its rows: take(row) is called for each from 0
// on, while the products of the next block are computed.
template <typename Sink>
void multiply_panels(const LinearLayer &layer, const TileRows &rows, PanelRange panels, int32_t *scratch,
                     const Sink &sink) {
    if (panels.first == panels.last) return;
    const TileScope tiles;
    const int64_t depth = layer.depth(), blocks = blocks_of(rows.rows), panel_bytes = 2 * depth * kTileBytes;
    BlockSums before{0, 0, panels.first, scratch + kBlockSums};  // none
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        const char *right = layer.weights + panel * panel_bytes;
        Fetcher fetcher(right + panel_bytes, panel + 1 < panels.last ? panel_bytes : 0, blocks * depth);
        for (int64_t block = 0; block < blocks; ++block) {
            const char *left = rows.tiles + 2 * block * depth * kTileBytes;
            const int64_t first_row = block * kRows, count = rows.rows - first_row;
            int32_t *sums = before.sums == scratch ? scratch + kBlockSums : scratch;
            const auto take = sink(before);
            RowsInSteps rows_before(before.rows, depth, take);
            multiply_block(left, count > kTileRows ? left + depth * kTileBytes : nullptr, right, depth, sums, [&] {
                fetcher.step();
                rows_before.step();
            });
            before = {first_row, count < kRows ? count : kRows, panel, sums};
        }
    }
    take_rows(before.rows, sink(before));
}

}  // namespace
}  // namespace patchcaption
