// The C interface of linear layers in 8 bits: distributes rows, and words that are chosen among, over threads.

#include "patchcaption/linear.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "linear_interface.h"

struct patchcaption_linear {
    patchcaption::LinearLayer layer;
};

namespace patchcaption {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 20, kMaxWeights = int64_t{1} << 31, kMaxRows = int64_t{1} << 31;
constexpr int64_t kBlockRows = 352;  // at most: what a layer of 3,072 makes of them stays in the second-level cache
// Parts of a vocabulary. Each begins with no words, and takes many of its first.
constexpr int64_t kPartsPerThread = 2, kMaxParts = 256;
constexpr float kNever = -1e30f;  // the logit of a word that is not there

const LinearVariant *select_linear() {
#if defined(__x86_64__)
    if (kLinearAmx.is_supported()) return &kLinearAmx;
#endif
    return nullptr;
}

bool is_valid(const patchcaption_layer *layer) {
    if (!layer || !layer->weights || !layer->scales || !layer->biases) return false;
    const int64_t inputs = layer->input_width, outputs = layer->output_width;
    if (inputs < 1 || inputs > kMaxWidth || inputs % kInputMultiple != 0) return false;
    if (outputs < 1 || outputs > kMaxWidth || inputs * outputs > kMaxWeights) return false;
    const bool has_norm = layer->norm_weights != nullptr;
    return layer->input_scale > 0 && has_norm == (layer->norm_biases != nullptr) &&
           (!has_norm || layer->norm_epsilon >= 0);
}

AlignedArray<float> scaled(const float *from, int64_t count, float factor) {
    AlignedArray<float> values = allocate<float>(count);
    for (int64_t i = 0; i < count; ++i) values[i] = from[i] * factor;
    return values;
}

AlignedArray<float> padded(const float *from, int64_t count, int64_t padded_count, float value) {
    AlignedArray<float> values = allocate<float>(padded_count);
    std::fill(std::copy_n(from, count, values.get()), values.get() + padded_count, value);
    return values;
}

LinearLayer packed(const LinearVariant &variant, const patchcaption_layer &from) {
    LinearLayer layer{};
    layer.input_width = from.input_width;
    layer.output_width = from.output_width;
    const int64_t outputs = layer.panels() * kPanelWidth;
    layer.weights = allocate<char>(multiply(outputs, from.input_width));
    variant.pack_weights(from.weights, layer);
    layer.scales = padded(from.scales, from.output_width, outputs, 0);
    layer.biases = padded(from.biases, from.output_width, outputs, kNever);
    layer.steps_per_unit = 1 / from.input_scale;
    layer.norm_epsilon = from.norm_epsilon;
    layer.has_gelu = from.has_gelu != 0;
    if (from.norm_weights) {
        layer.norm_weights = scaled(from.norm_weights, from.input_width, layer.steps_per_unit);
        layer.norm_biases = scaled(from.norm_biases, from.input_width, layer.steps_per_unit);
    }
    return layer;
}

using Layers = std::vector<const LinearLayer *>;

QuantizedRows rows_for(const LinearVariant &variant, const LinearLayer &layer, int64_t rows,
                       AlignedArray<char> &tiles) {
    tiles = allocate<char>(variant.tile_bytes(rows, layer.input_width));
    return {tiles.get(), rows};
}

// Calls work(task, scratch) for each of some tasks.
template <typename Work>
void distribute(int64_t tasks, int64_t threads, int64_t scratch_bytes, Work work) {
    std::atomic<int64_t> next{0};
    run_in_threads(std::min(threads, tasks), [&](int64_t) {
        const AlignedArray<char> scratch = allocate<char>(scratch_bytes);
        for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, scratch.get());
    });
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
        QuantizedRows rows = rows_for(variant, *layers[0], count, tiles);
        variant.quantize(*layers[0], arrays, first, rows);
        if (layers.size() == 2) {
            QuantizedRows next = rows_for(variant, *layers[1], count, next_tiles);
            variant.multiply_for(*layers[0], rows, {0, layers[0]->panels()}, *layers[1], next, scratch);
            rows = next;
        }
        variant.multiply(*layers.back(), rows, {0, layers.back()->panels()}, first, arrays, scratch);
    });
}

PanelRange part_of(const LinearLayer &layer, int64_t part, int64_t parts) {
    return {layer.panels() * part / parts, layer.panels() * (part + 1) / parts};
}

WordChoice no_choice() {
    WordChoice choice{};
    choice.largest = -std::numeric_limits<float>::infinity();
    std::fill_n(choice.logits, kCandidates, -std::numeric_limits<float>::infinity());
    return choice;
}

// Puts what another part chose among what was chosen of parts before it.
void merge(WordChoice &chosen, const WordChoice &other) {
    const float largest = std::max(chosen.largest, other.largest);
    const float factor = std::exp(chosen.largest - largest), other_factor = std::exp(other.largest - largest);
    for (int64_t i = 0; i < 16; ++i) chosen.sums[i] = chosen.sums[i] * factor + other.sums[i] * other_factor;
    chosen.largest = largest;
    const WordChoice before = chosen;
    for (int64_t i = 0, first = 0, second = 0; i < kCandidates; ++i) {
        const bool is_first = before.logits[first] >= other.logits[second];
        chosen.logits[i] = is_first ? before.logits[first] : other.logits[second];
        chosen.words[i] = is_first ? before.words[first++] : other.words[second++];
    }
}

struct ChosenWords {
    int64_t *words;
    float *logits, *largest, *sums;

    void store(int64_t row, const WordChoice &choice) const {
        std::copy_n(choice.words, kCandidates, words + row * kCandidates);
        std::copy_n(choice.logits, kCandidates, logits + row * kCandidates);
        largest[row] = choice.largest;
        sums[row] = 0;
        for (float part : choice.sums) sums[row] += part;
    }
};

void choose_words(const LinearVariant &variant, const LinearLayer &layer, const float *inputs, int64_t row_count,
                  int64_t word_count, int64_t threads, const ChosenWords &chosen) {
    AlignedArray<char> tiles;
    QuantizedRows rows = rows_for(variant, layer, row_count, tiles);
    variant.quantize(layer, {inputs, nullptr, nullptr, false}, 0, rows);
    const int64_t parts = std::min(kPartsPerThread * threads, kMaxParts);
    const AlignedArray<WordChoice> choices = allocate<WordChoice>(multiply(row_count, parts));
    std::fill_n(choices.get(), row_count * parts, no_choice());
    distribute(parts, threads, variant.scratch_bytes, [&](int64_t part, void *scratch) {
        const PanelRange panels = part_of(layer, part, parts);
        variant.choose(layer, rows, panels, word_count, choices.get() + part * row_count, scratch);
    });
    for (int64_t row = 0; row < row_count; ++row) {
        WordChoice choice = choices[row];
        for (int64_t part = 1; part < parts; ++part) {
            const WordChoice &other = choices[part * row_count + row];
            if (std::isfinite(other.largest)) merge(choice, other);
        }
        chosen.store(row, choice);
    }
}

}  // namespace
}  // namespace patchcaption

using namespace patchcaption;

extern "C" {

const char *patchcaption_linear_variant(int32_t index) {
    const LinearVariant *variant = select_linear();
    return variant && index == 0 ? variant->name : nullptr;
}

int32_t patchcaption_linear_create(const patchcaption_layer *layer, patchcaption_linear **created) {
    if (!created || !is_valid(layer)) return PATCHCAPTION_INVALID_ARGUMENT;
    const LinearVariant *variant = select_linear();
    if (!variant) return PATCHCAPTION_UNSUPPORTED_VARIANT;
    return status_of([&] {
        *created = new patchcaption_linear{packed(*variant, *layer)};
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
    if (layer_count == 2 && (first.output_width != last.input_width || last.norm_weights)) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    return status_of([&] {
        Layers chain{&first};
        if (layer_count == 2) chain.push_back(&last);
        const LinearArrays arrays{inputs, residual, outputs, storage == PATCHCAPTION_BF16};
        run(*select_linear(), chain, arrays, row_count, max_threads(threads));
        return PATCHCAPTION_OK;
    });
}

int32_t patchcaption_choose_words(const patchcaption_linear *vocabulary, const float *inputs, int64_t row_count,
                                  int64_t word_count, int32_t threads, int64_t *words, float *logits, float *largest,
                                  float *sums) {
    if (!vocabulary || !inputs || row_count < 1 || row_count > kMaxRows || !words || !logits || !largest || !sums ||
        word_count < kCandidates || word_count > vocabulary->layer.output_width) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    return status_of([&] {
        choose_words(*select_linear(), vocabulary->layer, inputs, row_count, word_count, max_threads(threads),
                     {words, logits, largest, sums});
        return PATCHCAPTION_OK;
    });
}
}
