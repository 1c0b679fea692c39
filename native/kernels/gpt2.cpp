// The C interface of steps of GPT-2: memory, and the work of a team of threads, layer by layer.

#include "patchcaption/gpt2.h"

#include <array>
#include <cmath>
#include <limits>

#include "gpt2_interface.h"
#include "linear_handle.h"
#include "support.h"

namespace patchcaption {
namespace {

constexpr int64_t kMaxRows = int64_t{1} << 20, kMaxPositions = int64_t{1} << 20, kMaxBlocks = 1024;
constexpr int64_t kHeadWidthMultiple = 16;
constexpr int64_t kTasksPerThread = 4;  // threads end at about the same time
constexpr int64_t kTaskRows = 4, kMaxThreads = 256;

#if defined(__x86_64__)
constexpr const Gpt2Variant *kVariants[] = {&kGpt2Amx, &kGpt2Avx512};
#else
constexpr std::array<const Gpt2Variant *, 0> kVariants;
#endif

// The variant of layers.
const Gpt2Variant *select_gpt2(const Packing *packing) {
    for (const Gpt2Variant *variant : kVariants) {
        if (variant->packing == packing) return variant;
    }
    return nullptr;
}

struct Block {
    const LinearLayer &attention_inputs, &attention_outputs, &mlp_inputs, &mlp_outputs;

    explicit Block(const patchcaption_gpt2_block &from)
        : attention_inputs(from.attention_inputs->layer),
          attention_outputs(from.attention_outputs->layer),
          mlp_inputs(from.mlp_inputs->layer),
          mlp_outputs(from.mlp_outputs->layer) {}
};

bool is_layer(const patchcaption_linear *handle, const Packing *packing, int64_t inputs, int64_t outputs,
              bool has_norm) {
    if (!handle || handle->packing != packing) return false;
    const LinearLayer &layer = handle->layer;
    return layer.input_width == inputs && layer.output_width == outputs && !layer.has_gelu &&
           (layer.norm_weights != nullptr) == has_norm && (has_norm || !layer.rounds_inputs());
}

bool is_valid(const patchcaption_gpt2_block &block, const Packing *packing, int64_t width) {
    if (!block.mlp_inputs) return false;
    const int64_t hidden = block.mlp_inputs->layer.output_width;
    return hidden % kInputMultiple == 0 && is_layer(block.attention_inputs, packing, width, 3 * width, true) &&
           is_layer(block.attention_outputs, packing, width, width, false) &&
           is_layer(block.mlp_inputs, packing, width, hidden, true) &&
           is_layer(block.mlp_outputs, packing, hidden, width, false);
}

bool is_valid(const patchcaption_gpt2 *gpt2) {
    if (!gpt2 || !gpt2->blocks || !gpt2->vocabulary || !gpt2->embeddings) return false;
    const LinearLayer &vocabulary = gpt2->vocabulary->layer;
    const int64_t width = vocabulary.input_width, heads = gpt2->head_count;
    if (heads < 1 || width % heads || width / heads % kHeadWidthMultiple) return false;
    if (gpt2->block_count < 1 || gpt2->block_count > kMaxBlocks) return false;
    if (gpt2->word_count < kCandidates || gpt2->word_count > vocabulary.output_width) return false;
    const bool are_blocks = std::all_of(
        gpt2->blocks, gpt2->blocks + gpt2->block_count,
        [&](const patchcaption_gpt2_block &block) { return is_valid(block, gpt2->vocabulary->packing, width); });
    const bool is_projection = !gpt2->projection || is_layer(gpt2->projection, gpt2->vocabulary->packing,
                                                             gpt2->projection->layer.input_width, width, false);
    return are_blocks && is_projection && vocabulary.norm_weights && !vocabulary.has_gelu;
}

bool is_valid(const patchcaption_gpt2_cache *cache, int64_t block_count) {
    if (!cache || !cache->is_attended || !cache->past || !cache->present) return false;
    const int64_t positions = cache->position_count;
    if (positions < 1 || positions > kMaxPositions) return false;
    if (cache->attended_stride != 0 && cache->attended_stride < positions) return false;
    for (int64_t i = 0; i < 2 * block_count; ++i) {
        if (!cache->past[i] || !cache->present[i]) return false;
    }
    return true;
}

bool is_valid(const patchcaption_gpt2_result *result) {
    return result && (result->all_log_probs || (result->words && result->log_probs));
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

int64_t panel_tasks(const LinearLayer &layer, int64_t threads) {
    return std::min(layer.panels(), kTasksPerThread * threads);
}

// The arguments of a step, and the memory between its layers.
struct Step {
    const Gpt2Variant &variant;
    const patchcaption_gpt2 &gpt2;
    const patchcaption_gpt2_cache &cache;
    const patchcaption_gpt2_result &result;
    const float *const vectors;  // (R, D), or null
    const int64_t width, rows, threads, vocabulary_parts, scratch_bytes;
    const AlignedArray<float> states, queries, normed;  // (R, E)
    const AlignedArray<WordChoice> choices;             // (parts, R)
    const AlignedArray<char> scratch;
    AlignedArray<char> tiles, wide_tiles;

    Step(const Gpt2Variant &variant, const patchcaption_gpt2 &gpt2, const patchcaption_gpt2_cache &cache,
         const patchcaption_gpt2_result &result, const float *inputs, const float *vectors, int64_t rows,
         int64_t threads)
        : variant(variant),
          gpt2(gpt2),
          cache(cache),
          result(result),
          vectors(vectors),
          width(gpt2.vocabulary->layer.input_width),
          rows(rows),
          threads(threads),
          vocabulary_parts(panel_tasks(gpt2.vocabulary->layer, threads)),
          scratch_bytes(round_up(variant.scratch_bytes(cache.position_count), kAlignment)),
          states(allocate<float>(multiply(rows, width))),
          queries(allocate<float>(multiply(rows, width))),
          normed(allocate<float>(multiply(rows, width))),
          choices(allocate<WordChoice>(multiply(rows, vocabulary_parts))),
          scratch(allocate<char>(multiply(threads, scratch_bytes))) {
        int64_t bytes = variant.tile_bytes(gpt2.vocabulary->layer, rows), wide_bytes = 0;
        for (int64_t i = 0; i < gpt2.block_count; ++i) {
            const Block block(gpt2.blocks[i]);
            for (const LinearLayer *layer : {&block.attention_inputs, &block.attention_outputs, &block.mlp_inputs}) {
                bytes = std::max(bytes, variant.tile_bytes(*layer, rows));
            }
            wide_bytes = std::max(wide_bytes, variant.tile_bytes(block.mlp_outputs, rows));
        }
        if (vectors) bytes = std::max(bytes, variant.tile_bytes(gpt2.projection->layer, rows));
        tiles = allocate_zeroed<char>(bytes);
        wide_tiles = allocate_zeroed<char>(wide_bytes);
        std::copy_n(inputs, rows * width, states.get());
        std::fill_n(choices.get(), rows * vocabulary_parts, no_choice());
    }

    TileRows tile_rows() const { return {tiles.get(), rows}; }
};

// What one thread of a team does of a step.
class Member {
  public:
    Member(const Step &step, TeamMember team, int64_t number)
        : step_(step),
          variant_(step.variant),
          team_(team),
          scratch_(step.scratch.get() + number * step.scratch_bytes) {}

    void run() {
        if (step_.vectors) {
            put(step_.gpt2.projection->layer, step_.vectors);
            add(step_.gpt2.projection->layer, step_.tile_rows());
        }
        for (int64_t number = 0; number < step_.gpt2.block_count; ++number) {
            const Block block(step_.gpt2.blocks[number]);
            attend(block, number);
            pass_mlp(block);
        }
        choose_words();
        share_rows([&](RowRange rows) {
            for (int64_t row = rows.first; row < rows.last; ++row) finish(row);
        });
    }

  private:
    void attend(const Block &block, int64_t number) {
        const patchcaption_gpt2_cache &cache = step_.cache;
        const float *const *past = cache.past + 2 * number;
        float *const parts[] = {step_.queries.get(), cache.present[2 * number], cache.present[2 * number + 1]};
        const StepAttention attention{step_.gpt2.head_count,
                                      step_.width / step_.gpt2.head_count,
                                      cache.position_count,
                                      parts[0],
                                      parts[1],
                                      parts[2],
                                      past[0],
                                      past[1],
                                      cache.is_attended,
                                      cache.attended_stride};
        put(block.attention_inputs, step_.states.get());
        share_panels(block.attention_inputs, [&](PanelRange panels, int64_t) {
            variant_.multiply(block.attention_inputs, step_.tile_rows(), panels, parts, step_.width, scratch_);
        });
        share_rows([&](RowRange rows) {
            variant_.attend(attention, block.attention_outputs, rows, step_.tiles.get(), scratch_);
        });
        add(block.attention_outputs, step_.tile_rows());
    }

    void pass_mlp(const Block &block) {
        const TileRows hidden{step_.wide_tiles.get(), step_.rows};
        put(block.mlp_inputs, step_.states.get());
        share_panels(block.mlp_inputs, [&](PanelRange panels, int64_t) {
            variant_.multiply_gelu(block.mlp_inputs, block.mlp_outputs, step_.tile_rows(), panels, hidden.tiles,
                                   scratch_);
        });
        add(block.mlp_outputs, hidden);
    }

    void choose_words() {
        const LinearLayer &vocabulary = step_.gpt2.vocabulary->layer;
        put(vocabulary, step_.states.get(), step_.normed.get());
        share_panels(vocabulary, [&](PanelRange panels, int64_t part) {
            WordChoice *choices = step_.choices.get() + part * step_.rows;
            variant_.choose(vocabulary, step_.tile_rows(), panels, step_.gpt2.word_count, choices,
                            step_.result.all_log_probs, scratch_);
        });
    }

    void finish(int64_t row) {
        WordChoice choice = step_.choices[row];
        for (int64_t part = 1; part < step_.vocabulary_parts; ++part) {
            const WordChoice &other = step_.choices[part * step_.rows + row];
            if (std::isfinite(other.largest)) merge(choice, other);
        }
        float sum = 0;
        for (float part : choice.sums) sum += part;
        const patchcaption_gpt2_result &result = step_.result;
        if (result.all_log_probs) {
            const int64_t words = step_.gpt2.word_count;
            variant_.subtract(result.all_log_probs + row * words, words, choice.largest + std::log(sum));
            return;
        }
        float exact[kCandidates];
        variant_.recompute(choice, step_.gpt2.embeddings, step_.normed.get() + row * step_.width, step_.width, exact);
        const int64_t best = std::max_element(exact, exact + kCandidates) - exact;
        const float largest = std::max(choice.largest, exact[best]);
        sum *= std::exp(choice.largest - largest);
        for (int64_t i = 0; i < kCandidates; ++i) {
            sum += std::exp(exact[i] - largest) - std::exp(choice.logits[i] - largest);
        }
        result.words[row] = choice.words[best];
        result.log_probs[row] = exact[best] - (largest + std::log(sum));
    }

    void put(const LinearLayer &layer, const float *inputs, float *normed = nullptr) {
        share_rows([&](RowRange rows) { variant_.put(layer, inputs, rows, step_.tiles.get(), normed); });
    }

    void add(const LinearLayer &layer, const TileRows &rows) {
        share_panels(layer, [&](PanelRange panels, int64_t) {
            variant_.multiply_add(layer, rows, panels, step_.states.get(), scratch_);
        });
    }

    template <typename Work>
    void share_rows(Work work) {
        team_.share((step_.rows + kTaskRows - 1) / kTaskRows, [&](int64_t task) {
            work(RowRange{task * kTaskRows, std::min(step_.rows, (task + 1) * kTaskRows)});
        });
    }

    template <typename Work>
    void share_panels(const LinearLayer &layer, Work work) {
        const int64_t tasks = panel_tasks(layer, step_.threads);
        team_.share(tasks, [&](int64_t task) {
            const PanelRange panels{layer.panels() * task / tasks, layer.panels() * (task + 1) / tasks};
            work(panels, task);
        });
    }

    const Step &step_;
    const Gpt2Variant &variant_;
    TeamMember team_;
    char *const scratch_;
};

}  // namespace
}  // namespace patchcaption

using namespace patchcaption;

extern "C" {

const char *patchcaption_gpt2_variant(int32_t index) {
    for (const Gpt2Variant *variant : kVariants) {
        if (variant->packing->is_supported() && index-- == 0) return variant->packing->name;
    }
    return nullptr;
}

int32_t patchcaption_gpt2_step(const patchcaption_gpt2 *gpt2, const float *inputs, const float *vectors,
                               int64_t row_count, const patchcaption_gpt2_cache *cache, int32_t threads,
                               const patchcaption_gpt2_result *result) {
    if (!is_valid(gpt2) || !inputs || row_count < 1 || row_count > kMaxRows || !is_valid(cache, gpt2->block_count) ||
        !is_valid(result) || (vectors && !gpt2->projection)) {
        return PATCHCAPTION_INVALID_ARGUMENT;
    }
    return status_of([&] {
        const int64_t size = std::min(max_threads(threads), kMaxThreads);
        const Step step(*select_gpt2(gpt2->vocabulary->packing), *gpt2, *cache, *result, inputs, vectors, row_count,
                        size);
        run_in_team(size, [&](TeamMember team, int64_t number) { Member(step, team, number).run(); });
        return PATCHCAPTION_OK;
    });
}
}
