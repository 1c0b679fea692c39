// The seam between the C interface of linear layers in 8 bits and their variants.
//
// Shapes: R rows, K inputs and N outputs of a layer.
#pragma once

#include <cstdint>

#include "patchcaption/linear.h"

namespace patchcaption {

constexpr int64_t kPanelWidth = 32;     // outputs that are computed together
constexpr int64_t kInputMultiple = 64;  // of K
constexpr int64_t kLineBytes = 64;

// A layer with its arrays as the variants read them; those over N are padded to whole panels.
struct LinearLayer {
    int64_t input_width, output_width;        // K, N
    char *weights;                            // (N / 32, K / 64) pairs of tiles, or as `pack_blocks` has them
    const float *scales, *biases;             // (N,): an output is sum * scale + bias
    const float *block_scales;                // (K / 64, N) of weights whose inputs are not rounded, without `scales`
    float steps_per_unit;                     // of the inputs; 1 for those that are not rounded
    const float *norm_weights, *norm_biases;  // (K,), in steps; null where inputs are not normalized
    float norm_epsilon;
    bool has_gelu;

    bool rounds_inputs() const { return !block_scales; }
    int64_t depth() const { return input_width / kInputMultiple; }
    int64_t panels() const { return (output_width + kPanelWidth - 1) / kPanelWidth; }
};

// How layers' weights are held.
struct Packing {
    const char *name;
    bool (*is_supported)();
    void (*pack)(const int8_t *weights, const LinearLayer &layer);
};

struct PanelRange {
    int64_t first, last;
};

// Inputs as variants multiply them: R is padded to whole blocks.
struct TileRows {
    char *tiles;
    int64_t rows;
};

// The arrays of a call, all (R, ...).
struct LinearArrays {
    const void *inputs;
    const void *residual;  // (R, N), or null
    void *outputs;         // (R, N)
    bool is_bf16;
    bool is_streamed;  // whether outputs are written past the caches: they are whole lines
};

struct LinearVariant {
    const Packing *packing;
    int64_t row_block;  // rows that are computed together
    int64_t scratch_bytes;
    int64_t (*tile_bytes)(int64_t rows, int64_t width);
    // Rounds inputs from `first_row` on.
    void (*quantize)(const LinearLayer &layer, const LinearArrays &arrays, int64_t first_row, TileRows &to);
    // Writes outputs from `first_row` on.
    void (*multiply)(const LinearLayer &layer, const TileRows &rows, int64_t first_row, const LinearArrays &arrays,
                     void *scratch);
    // Rounds outputs for the layer after.
    void (*multiply_for)(const LinearLayer &layer, const TileRows &rows, const LinearLayer &next, TileRows &to,
                         void *scratch);
};

#if defined(__x86_64__)
extern const Packing kPackedAmx, kPackedAvx512;
extern const LinearVariant kLinearAmx;
#endif

}  // namespace patchcaption
