// The seam between the C interface of steps of GPT-2 and their variants.
//
// Shapes: R rows, E width, F width of the MLPs, H heads, d = E / H, P positions of the cache; rows of tiles are padded
// to whole blocks.
#pragma once

#include <cstdint>

#include "linear_interface.h"
#include "patchcaption/gpt2.h"

namespace patchcaption {

constexpr int64_t kCandidates = 8;  // words of which the likeliest one is

// The attention of one block.
struct StepAttention {
    int64_t heads, head_width, positions;  // H, d, P
    const float *queries;                  // (R, E)
    const float *keys, *values;            // (R, E), the step's own
    const float *past_keys, *past_values;  // (R, H, P, d)
    const uint8_t *is_attended;            // (P,), or (R, P)
    int64_t attended_stride;

    int64_t width() const { return heads * head_width; }
};

// The words with the largest logits of a row, the largest first, and the sum of the exponentials of all.
struct WordChoice {
    alignas(64) float sums[16];  // of exp(logit - largest), in parts
    float logits[kCandidates];
    int32_t words[kCandidates];
    float largest;
};

struct RowRange {
    int64_t first, last;
};

struct Gpt2Variant {
    const Packing *packing;
    // Of rows as they are multiplied by a layer.
    int64_t (*tile_bytes)(const LinearLayer &layer, int64_t rows);
    int64_t (*scratch_bytes)(int64_t positions);
    // Puts some rows of the inputs (R, K) of a layer, normed if it begins so, into its tiles, and in `normed` unless it
    // is null.
    void (*put)(const LinearLayer &layer, const float *inputs, RowRange rows, char *tiles, float *normed);
    // Puts what some rows attend to into the tiles of a layer.
    void (*attend)(const StepAttention &attention, const LinearLayer &layer, RowRange rows, char *tiles, void *scratch);
    // Computes some panels of a layer's outputs: as (R, N) in parts of `part_width` outputs,
    void (*multiply)(const LinearLayer &layer, const TileRows &rows, PanelRange panels, float *const *parts,
                     int64_t part_width, void *scratch);
    // passed through a GELU into the tiles of the next layer,
    void (*multiply_gelu)(const LinearLayer &layer, const LinearLayer &next, const TileRows &rows, PanelRange panels,
                          char *tiles, void *scratch);
    // added to (R, N),
    void (*multiply_add)(const LinearLayer &layer, const TileRows &rows, PanelRange panels, float *sums, void *scratch);
    // or as logits, the largest of which are chosen; words from `word_count` on never are. Others are stored, as
    // (R, word_count), unless `logits` is null.
    void (*choose)(const LinearLayer &layer, const TileRows &rows, PanelRange panels, int64_t word_count,
                   WordChoice *choices, float *logits, void *scratch);
    // Computes the logits of chosen words again, by their embeddings (V, E) and a state (E,).
    void (*recompute)(const WordChoice &choice, const float *embeddings, const float *state, int64_t width,
                      float *logits);
    void (*subtract)(float *values, int64_t count, float subtracted);
};

#if defined(__x86_64__)
extern const Gpt2Variant kGpt2Amx, kGpt2Avx512;
#endif

}  // namespace patchcaption
