// The C interface of linear layers in 8 bits: distributes rows over threads.

#include "patchcaption/linear.h"

#include "linear_handle.h"
#include "linear_interface.h"
#include "support.h"

namespace patchcaption {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 20, kMaxWeights = int64_t{1} << 31, kMaxRows = int64_t{1} << 31;
constexpr int64_t kBlockRows = 352;  // at most: what a layer of 3,072 makes of them stays in the second-level cache
constexpr int64_t kStreamedBytes = 2 << 20;  // of outputs that fill that cache

constexpr float kNever = -1e30f;  // an output that is not there

const LinearVariant *select_linear() {
#if defined(__x86_64__)
    if (kPackedAmx.is_supported()) return &kLinearAmx;
#endif
    return nullptr;
}

// The packing of a name, or the first one that the CPU supports.
const Packing *select_packing(const char *name) {
#if defined(__x86_64__)
    for (const Packing *packing : {&kPackedAmx, &kPackedAvx512}) {
        if ((!name || std::strcmp(name, packing->name) == 0) && packing->is_supported()) return packing;
    }
#endif
    (void)name;
    return nullptr;
}

bool is_valid(const patchcaption_layer *layer) {
    if (!layer || !layer->weights || !layer->scales || !layer->biases) return false;
    const int64_t inputs = layer->input_width, outputs = layer->output_width;
    if (inputs < 1 || inputs > kMaxWidth || inputs % kInputMultiple != 0) return false;
    if (outputs < 1 || outputs > kMaxWidth || inputs * outputs > kMaxWeights) return false;
    const bool has_norm = layer->norm_weights != nullptr;
    return layer->input_scale >= 0 && has_norm == (layer->norm_biases != nullptr) &&
           (!has_norm || layer->norm_epsilon >= 0);
}

AlignedArray<float> scaled(const float *from, int64_t count, float factor) {
    AlignedArray<float> values = allocate<float>(count);
    for (int64_t i = 0; i < count; ++i) values[i] = from[i] * factor;
    return values;
}

// The rows of a matrix, each padded to some width with a value.
AlignedArray<float> padded(const float *from, int64_t rows, int64_t width, int64_t padded_width, float value) {
    AlignedArray<float> values = allocate<float>(rows * padded_width);
    for (int64_t row = 0; row < rows; ++row) {
        float *to = values.get() + row * padded_width;
        std::fill(std::copy_n(from + row * width, width, to), to + padded_width, value);
    }
    return values;
}

std::unique_ptr<patchcaption_linear> packed(const Packing &packing, const patchcaption_layer &from) {
    auto linear = std::make_unique<patchcaption_linear>();
    linear->packing = &packing;
    LinearLayer &layer = linear->layer;
    layer.input_width = from.input_width;
    layer.output_width = from.output_width;
    const int64_t outputs = layer.panels() * kPanelWidth;
    linear->weights = allocate<char>(multiply(outputs, from.input_width));
    const bool rounds_inputs = from.input_scale > 0;
    const int64_t scale_rows = rounds_inputs ? 1 : layer.depth();
    linear->scales = padded(from.scales, scale_rows, from.output_width, outputs, 0);
    linear->biases = padded(from.biases, 1, from.output_width, outputs, kNever);
    layer.steps_per_unit = rounds_inputs ? 1 / from.input_scale : 1;
    layer.norm_epsilon = from.norm_epsilon;
    layer.has_gelu = from.has_gelu != 0;
    if (from.norm_weights) {
        linear->norm_weights = scaled(from.norm_weights, from.input_width, layer.steps_per_unit);
        linear->norm_biases = scaled(from.norm_biases, from.input_width, layer.steps_per_unit);
    }
    layer.weights = linear->weights.get();
    (rounds_inputs ? layer.scales : layer.block_scales) = linear->scales.get();
    layer.biases = linear->biases.get();
    layer.norm_weights = linear->norm_weights.get();
    layer.norm_biases = linear->norm_biases.get();
    packing.pack(from.weights, layer);
    return linear;
}

using Layers = std::vector<const LinearLayer *>;

TileRows rows_for(const LinearVariant &variant, const LinearLayer &layer, int64_t rows, AlignedArray<char> &tiles) {
    tiles = allocate<char>(variant.tile_bytes(rows, layer.input_width));
    return {tiles.get(), rows};
}

// Whether outputs are better written past the caches, whose lines would be read first. Those that a residual is added
// to are fewer, and soon read.
bool is_streamed(const LinearLayer &layer, const void *residual, int64_t row_count, int32_t storage,
                 const void *outputs) {
    const int64_t bytes = row_count * layer.output_width * (storage == PATCHCAPTION_BF16 ? 2 : 4);
    const bool has_whole_lines =
        layer.output_width % kPanelWidth == 0 && reinterpret_cast<uintptr_t>(outputs) % kLineBytes == 0;
    return !residual && bytes > kStreamedBytes && has_whole_lines;
}

// Each block of rows passes all layers.
void run(const LinearVariant &variant, const Layers &layers, const LinearArrays &arrays, int64_t row_count,
         int64_t threads) {
    const int64_t blocks = threads * ((row_count + threads * kBlockRows - 1) / (threads * kBlockRows));
    const int64_t block_rows = round_up((row_count + blocks - 1) / blocks, variant.row_block);
    const int64_t tasks = (row_count + block_rows - 1) / block_rows;
    distribute(tasks, threads, variant.scratch_bytes, [&](int64_t task, void *scratch) {
        const int64_t first = task * block_rows, count = std::min(block_rows, row_count - first);
        AlignedArray<char> tiles, next_tiles;
        TileRows rows = rows_for(variant, *layers[0], count, tiles);
        variant.quantize(*layers[0], arrays, first, rows);
        if (layers.size() == 2) {
            TileRows next = rows_for(variant, *layers[1], count, next_tiles);
            variant.multiply_for(*layers[0], rows, *layers[1], next, scratch);
            rows = next;
        }
        variant.multiply(*layers.back(), rows, first, arrays, scratch);
    });
}

}  // namespace
}  // namespace patchcaption

using namespace patchcaption;

extern "C" {

const char *patchcaption_linear_variant(int32_t index) {
    const LinearVariant *variant = select_linear();
    return variant && index == 0 ? variant->packing->name : nullptr;
}

int32_t patchcaption_linear_create(const patchcaption_layer *layer, const char *variant,
                                   patchcaption_linear **created) {
    if (!created || !is_valid(layer)) return PATCHCAPTION_INVALID_ARGUMENT;
    const Packing *packing = select_packing(variant);
    if (!packing) return PATCHCAPTION_UNSUPPORTED_VARIANT;
    return status_of([&] {
        *created = packed(*packing, *layer).release();
        return PATCHCAPTION_OK;
    });
}

void patchcaption_linear_free(patchcaption_linear *layer) { delete layer; }

int32_t patchcaption_linear_run(const patchcaption_linear *const *layers, int64_t layer_count, const void *inputs,
                                const void *residual, int64_t row_count, int32_t storage, int32_t threads,
                                void *outputs) {
    const bool is_storage = storage == PATCHCAPTION_FP32 || storage == PATCHCAPTION_BF16;
    if (!layers || layer_count < 1 || layer_count > 2 || !layers[0] || !layers[layer_count - 1] || !inputs ||
        !outputs || row_count < 1 || row_count > kMaxRows || !is_storage) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    const LinearLayer &first = layers[0]->layer, &last = layers[layer_count - 1]->layer;
    if (!first.rounds_inputs() || !last.rounds_inputs()) return PATCHCAPTION_INVALID_ARGUMENT;
    const LinearVariant *variant = select_linear();
    if (!variant || layers[0]->packing != variant->packing || layers[layer_count - 1]->packing != variant->packing) {
        return PATCHCAPTION_UNSUPPORTED_VARIANT;
    }
    if (layer_count == 2 && (first.output_width != last.input_width || last.norm_weights)) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    return status_of([&] {
        Layers chain{&first};
        if (layer_count == 2) chain.push_back(&last);
        const LinearArrays arrays{inputs, residual, outputs, storage == PATCHCAPTION_BF16,
                                  is_streamed(last, residual, row_count, storage, outputs)};
        run(*variant, chain, arrays, row_count, max_threads(threads));
        return PATCHCAPTION_OK;
    });
}
}
