// What steps of GPT-2 share in AVX-512: norms, attention, GELU, and the choice of words. Everything is local to the
// including file, as in scratch.h.
//
// `Products` are those of an instruction set:
//   Scratch(ScratchPartition &)                      the scratch memory of one thread
//   tile_bytes(layer, rows)                          of rows as it multiplies them
//   store_bf16(tiles, layer, row, k, values)         puts 16 inputs of a row there, as bfloat16,
//   store_steps(tiles, layer, row, k, steps)         or as 8 bits
//   multiply(layer, rows, panels, scratch, sink)     calls sink(block, outputs) for each block of rows and panel, where
//                                                    outputs(row, half) are 16 of the panel's 32 outputs of a row, and
//                                                    what that returns for each row of the block, from 0 on
//
// Shapes: as in gpt2_interface.h; K inputs and N outputs of a layer.
#pragma once

#include "avx512_linear.h"
#include "gpt2_interface.h"

namespace patchcaption {
namespace {

// A panel's outputs of some rows.
struct Block {
    int64_t first_row, first_output;
};

// The outputs of a panel by the sums of 8-bit products, which are kPanelWidth apart,
struct ScaledSums {
    const int32_t *sums;
    PanelScales scales;

    ScaledSums(const int32_t *from, const LinearLayer &layer, int64_t panel) : sums(from), scales(layer, panel) {}

    __m512 operator()(int64_t row, int half) const { return scales.outputs(sums + row * kPanelWidth, half); }
};

// or of bfloat16 products.
struct BiasedSums {
    const float *sums;
    __m512 biases[2];

    BiasedSums(const float *from, const LinearLayer &layer, int64_t panel) : sums(from) {
        for (int half = 0; half < 2; ++half) {
            biases[half] = _mm512_load_ps(layer.biases + panel * kPanelWidth + half * kLanes);
        }
    }

    __m512 operator()(int64_t row, int half) const {
        return _mm512_add_ps(_mm512_load_ps(sums + row * kPanelWidth + half * kLanes), biases[half]);
    }
};

// A tile of weights, pairs of inputs by 16 outputs, of 16 rows of 16 even inputs' and 16 odd inputs' 8 bits.
inline void convert(const char *packed, __m512 scales, char *tile) {
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t row = 0; row < kLanes; ++row, packed += 32, tile += 64) {
        const __m128i *halves = reinterpret_cast<const __m128i *>(packed);
        const __m512 even = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(halves)));
        const __m512 odd = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(halves + 1)));
        const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(odd, scales), _mm512_mul_ps(even, scales));
        _mm512_store_si512(tile, _mm512_permutexvar_epi16(interleaved, pairs));
    }
}

// exp(x), but at least 2**-126, as smaller numbers would be slow: 2**n * 2**f by a polynomial of degree 5.
inline __m512 exponentials(__m512 x) {
    const __m512 powers = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _mm512_set1_ps(-126));
    const __m512 whole = _mm512_roundscale_ps(powers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(powers, whole);
    constexpr float kTerms[] = {1.0f, 6.9314718e-1f, 2.4022651e-1f, 5.5504109e-2f, 9.6181291e-3f, 1.3333558e-3f};
    __m512 sum = _mm512_set1_ps(kTerms[5]);
    for (int term = 4; term >= 0; --term) sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(kTerms[term]));
    return _mm512_scalef_ps(sum, whole);
}

// x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 * u)), with u = sqrt(2 / pi) * (x + 0.044715 * x**3).
inline __m512 tanh_gelu(__m512 x) {
    constexpr float kFirst = -2 * 0.7978845608f, kThird = kFirst * 0.044715f;
    const __m512 factor = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(kThird), _mm512_set1_ps(kFirst));
    const __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponentials(_mm512_mul_ps(x, factor))));
}

inline float dot(const float *one, const float *other, int64_t width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(one + i), _mm512_loadu_ps(other + i), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// Replaces logits by exponentials relative to the largest, and returns the inverse of their sum.
__m512 soften(float *logits, int64_t count) {
    const int64_t padded = round_up(count, 16);
    for (int64_t i = count; i < padded; ++i) logits[i] = -INFINITY;
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < padded; i += 16) largest = _mm512_max_ps(largest, _mm512_load_ps(logits + i));
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t i = 0; i < padded; i += 16) {
        const __m512 weights = exponentials(_mm512_sub_ps(_mm512_load_ps(logits + i), largest));
        _mm512_store_ps(logits + i, weights);
        sum = _mm512_add_ps(sum, weights);
    }
    return _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum));
}

// The scratch memory of an attention.
struct AttentionScratch {
    float *weights;     // (padded P + 1,)
    int32_t *attended;  // (P,)

    AttentionScratch(ScratchPartition &partition, int64_t positions) {
        partition.take(weights, round_up(positions + 1, kLanes));
        partition.take(attended, round_up(positions, kLanes));
    }
};

// Puts a word where its logit belongs among those chosen.
inline void insert(WordChoice &choice, float logit, int32_t word) {
    int64_t place = kCandidates - 1;
    for (; place > 0 && choice.logits[place - 1] < logit; --place) {
        choice.logits[place] = choice.logits[place - 1];
        choice.words[place] = choice.words[place - 1];
    }
    choice.logits[place] = logit;
    choice.words[place] = word;
}

inline __mmask16 above(__m512 logits, float bound) {
    return _mm512_cmp_ps_mask(logits, _mm512_set1_ps(bound), _CMP_GT_OQ);
}

void raise(WordChoice &choice, __m512 logits) {
    const float largest = _mm512_reduce_max_ps(logits);
    const __m512 factor = exponentials(_mm512_set1_ps(choice.largest - largest));
    _mm512_store_ps(choice.sums, _mm512_mul_ps(_mm512_load_ps(choice.sums), factor));
    choice.largest = largest;
}

// Puts those of 16 words among the chosen whose logits are larger than the last of them.
void insert_better(WordChoice &choice, __m512 logits, __mmask16 words, int64_t first_word) {
    alignas(64) float values[16];
    _mm512_store_ps(values, logits);
    for (int better = words & above(logits, choice.logits[kCandidates - 1]); better; better &= better - 1) {
        const int lane = __builtin_ctz(better);
        if (values[lane] > choice.logits[kCandidates - 1]) {
            insert(choice, values[lane], static_cast<int32_t>(first_word + lane));
        }
    }
}

void recompute(const WordChoice &choice, const float *embeddings, const float *state, int64_t width, float *logits) {
    for (int64_t i = 0; i < kCandidates; ++i) logits[i] = dot(embeddings + choice.words[i] * width, state, width);
}

void subtract(float *values, int64_t count, float subtracted) {
    const __m512 difference = _mm512_set1_ps(subtracted);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = existing(i, count);
        _mm512_mask_storeu_ps(values + i, mask, _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, values + i), difference));
    }
}

template <typename Products>
struct Steps {
    using Scratch = typename Products::Scratch;

    static int64_t scratch_bytes(int64_t positions) {
        ScratchPartition partition(nullptr);
        const Scratch scratch(partition);
        const AttentionScratch attention(partition, positions);
        return partition.bytes();
    }

    static void put(const LinearLayer &layer, const float *inputs, RowRange rows, char *tiles, float *normed) {
        const int64_t width = layer.input_width;
        const __m512 step = _mm512_set1_ps(1 / layer.steps_per_unit);
        for (int64_t row = rows.first; row < rows.last; ++row) {
            scale_row(layer, inputs + row * width, [&](int64_t k, __m512 steps) {
                if (layer.rounds_inputs()) Products::store_steps(tiles, layer, row, k, steps);
                else Products::store_bf16(tiles, layer, row, k, steps);
                if (normed) _mm512_storeu_ps(normed + row * width + k, _mm512_mul_ps(steps, step));
            });
        }
    }

    static void multiply(const LinearLayer &layer, const TileRows &rows, PanelRange panels, float *const *parts,
                         int64_t part_width, void *memory) {
        multiply_rows(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
            float *first =
                parts[block.first_output / part_width] + block.first_row * part_width + block.first_output % part_width;
            return [=](int64_t row) {
                float *to = first + row * part_width;
                _mm512_storeu_ps(to, outputs(row, 0));
                _mm512_storeu_ps(to + 16, outputs(row, 1));
            };
        });
    }

    static void multiply_gelu(const LinearLayer &layer, const LinearLayer &next, const TileRows &rows,
                              PanelRange panels, char *tiles, void *memory) {
        multiply_rows(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
            return [=, &next](int64_t row) {
                for (int half = 0; half < 2; ++half) {
                    Products::store_bf16(tiles, next, block.first_row + row, block.first_output + 16 * half,
                                         tanh_gelu(outputs(row, half)));
                }
            };
        });
    }

    static void multiply_add(const LinearLayer &layer, const TileRows &rows, PanelRange panels, float *sums,
                             void *memory) {
        multiply_rows(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
            float *first = sums + block.first_row * layer.output_width + block.first_output;
            return [=, stride = layer.output_width](int64_t row) {
                float *to = first + row * stride;
                _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), outputs(row, 0)));
                _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), outputs(row, 1)));
            };
        });
    }

    static void attend(const StepAttention &from, const LinearLayer &layer, RowRange rows, char *tiles, void *memory) {
        ScratchPartition partition(memory);
        const Scratch products(partition);
        const AttentionScratch scratch(partition, from.positions);
        for (int64_t row = rows.first; row < rows.last; ++row) {
            const uint8_t *is_attended = from.is_attended + row * from.attended_stride;
            int64_t count = 0;
            for (int64_t position = 0; position < from.positions; ++position) {
                if (is_attended[position]) scratch.attended[count++] = static_cast<int32_t>(position);
            }
            for (int64_t head = 0; head < from.heads; ++head)
                attend_head(from, row, head, scratch, count, layer, tiles);
        }
    }

    static void choose(const LinearLayer &layer, const TileRows &rows, PanelRange panels, int64_t word_count,
                       WordChoice *choices, float *stored, void *memory) {
        multiply_rows(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
            const int64_t first = block.first_output;
            return [=, words = existing(first, word_count),
                    later_words = existing(first + 16, word_count)](int64_t row) {
                WordChoice &choice = choices[block.first_row + row];
                const __m512 logits = outputs(row, 0), later = outputs(row, 1), larger = _mm512_max_ps(logits, later);
                if (above(larger, choice.largest)) raise(choice, larger);
                const __m512 largest = _mm512_set1_ps(choice.largest);
                const __m512 added = _mm512_add_ps(exponentials(_mm512_sub_ps(logits, largest)),
                                                   exponentials(_mm512_sub_ps(later, largest)));
                _mm512_store_ps(choice.sums, _mm512_add_ps(_mm512_load_ps(choice.sums), added));
                if (above(larger, choice.logits[kCandidates - 1])) {
                    insert_better(choice, logits, words, first);
                    insert_better(choice, later, later_words, first + 16);
                }
                if (stored) {
                    float *to = stored + (block.first_row + row) * word_count + first;
                    _mm512_mask_storeu_ps(to, words, logits);
                    _mm512_mask_storeu_ps(to + 16, later_words, later);
                }
            };
        });
    }

    static constexpr Gpt2Variant variant(const Packing &packing) {
        return {&packing,      Products::tile_bytes, scratch_bytes, put,       attend,  multiply,
                multiply_gelu, multiply_add,         choose,        recompute, subtract};
    }

  private:
    static void attend_head(const StepAttention &from, int64_t row, int64_t head, const AttentionScratch &scratch,
                            int64_t attended_count, const LinearLayer &layer, char *tiles) {
        const int64_t width = from.head_width, own = row * from.width() + head * width;
        const int64_t past = (row * from.heads + head) * from.positions * width;
        const float scale = 1 / std::sqrt(static_cast<float>(width));
        for (int64_t i = 0; i < attended_count; ++i) {
            const float *key = from.past_keys + past + scratch.attended[i] * width;
            scratch.weights[i] = dot(from.queries + own, key, width) * scale;
        }
        scratch.weights[attended_count] = dot(from.queries + own, from.keys + own, width) * scale;
        const __m512 inverse = soften(scratch.weights, attended_count + 1);
        for (int64_t d = 0; d < width; d += 16) {
            const float *values = from.past_values + past + d;
            __m512 sum =
                _mm512_mul_ps(_mm512_set1_ps(scratch.weights[attended_count]), _mm512_loadu_ps(from.values + own + d));
            for (int64_t i = 0; i < attended_count; ++i) {
                const __m512 value = _mm512_loadu_ps(values + scratch.attended[i] * width);
                sum = _mm512_fmadd_ps(_mm512_set1_ps(scratch.weights[i]), value, sum);
            }
            Products::store_bf16(tiles, layer, row, head * width + d, _mm512_mul_ps(sum, inverse));
        }
    }

    template <typename Sink>
    static void multiply_rows(const LinearLayer &layer, const TileRows &rows, PanelRange panels, void *memory,
                              const Sink &sink) {
        ScratchPartition partition(memory);
        const Scratch scratch(partition);
        Products::multiply(layer, rows, panels, scratch, sink);
    }
};

}  // namespace
}  // namespace patchcaption
