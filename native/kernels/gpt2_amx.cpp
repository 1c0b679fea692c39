// A step of GPT-2 on Intel AMX.
//
// Layers whose inputs are rounded to 8 bits are products of 8-bit tiles. Those of the others are products of bfloat16
// tiles: of a tile of weights at a time, which is made of 8 bits and their scales, and multiplies up to 64 rows.
//
// Shapes: as in gpt2_interface.h; K inputs and N outputs of a layer.
#include <immintrin.h>

#include "amx_linear.h"
#include "gpt2_interface.h"

namespace patchcaption {
namespace {

constexpr int64_t kGroupRows = 4 * kTileRows;     // whose sums of 16 outputs stay in tile registers
constexpr int64_t kPackedBytes = kTileBytes / 2;  // of what a tile of bfloat16 weights is made of

// The scratch memory of one thread.
struct Scratch {
    int32_t *sums;      // two blocks
    float *group_sums;  // (kGroupRows, kPanelWidth)
    char *converted;    // two tiles
    float *weights;     // (padded P + 1,) of an attention
    int32_t *attended;  // (P,)
};

Scratch partition_scratch(int64_t positions, void *memory, int64_t *bytes = nullptr) {
    ScratchPartition partition(memory);
    Scratch scratch;
    partition.take(scratch.sums, 2 * kBlockSums);
    partition.take(scratch.group_sums, kGroupRows * kPanelWidth);
    partition.take(scratch.converted, 2 * kTileBytes);
    partition.take(scratch.weights, round_up(positions + 1, 16));
    partition.take(scratch.attended, round_up(positions, 16));
    if (bytes) *bytes = partition.bytes();
    return scratch;
}

int64_t scratch_bytes(int64_t positions) {
    int64_t bytes;
    partition_scratch(positions, nullptr, &bytes);
    return bytes;
}

int64_t tile_bytes(const LinearLayer &layer, int64_t rows) {
    return round_up(rows, kRows) * layer.input_width * (layer.rounds_inputs() ? 1 : 2);
}

// Puts 16 inputs of a row, as bfloat16, where they go in tiles of a layer.
inline void store_bf16(char *tiles, const LinearLayer &layer, int64_t row, int64_t k, __m512 values) {
    char *place = tiles + (row / kTileRows * (layer.input_width / kTileDepth) + k / kTileDepth) * kTileBytes +
                  row % kTileRows * 64 + k % kTileDepth * 2;
    _mm256_store_si256(reinterpret_cast<__m256i *>(place), (__m256i)_mm512_cvtneps_pbh(values));
}

inline void store_input(char *tiles, const LinearLayer &layer, int64_t row, int64_t k, __m512 steps) {
    if (!layer.rounds_inputs()) return store_bf16(tiles, layer, row, k, steps);
    char *place = place_in_tiles({tiles, 0}, layer.depth(), row, k);
    _mm_store_si128(reinterpret_cast<__m128i *>(place), to_steps(steps));
}

void put(const LinearLayer &layer, const float *inputs, RowRange rows, char *tiles, float *normed) {
    const int64_t width = layer.input_width;
    const __m512 per_unit = _mm512_set1_ps(layer.steps_per_unit), step = _mm512_set1_ps(1 / layer.steps_per_unit);
    for (int64_t row = rows.first; row < rows.last; ++row) {
        const float *values = inputs + row * width;
        Normalization norm{_mm512_setzero_ps(), per_unit};
        if (layer.norm_weights) norm = normalization(values, width, layer.norm_epsilon);
        for (int64_t k = 0; k < width; k += 16) {
            __m512 steps = _mm512_mul_ps(_mm512_sub_ps(load_values(values + k), norm.mean), norm.inverse);
            if (layer.norm_weights) {
                const __m512 weights = _mm512_load_ps(layer.norm_weights + k);
                steps = _mm512_fmadd_ps(steps, weights, _mm512_load_ps(layer.norm_biases + k));
            }
            store_input(tiles, layer, row, k, steps);
            if (normed) _mm512_storeu_ps(normed + row * width + k, _mm512_mul_ps(steps, step));
        }
    }
}

// A tile of weights, pairs of inputs by 16 outputs, of 16 rows of 16 even inputs' and 16 odd inputs' 8 bits.
inline void convert(const char *packed, __m512 scales, char *tile) {
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t row = 0; row < kTileRows; ++row, packed += 32, tile += 64) {
        const __m128i *halves = reinterpret_cast<const __m128i *>(packed);
        const __m512 even = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(halves)));
        const __m512 odd = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(halves + 1)));
        const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(odd, scales), _mm512_mul_ps(even, scales));
        _mm512_store_si512(tile, _mm512_permutexvar_epi16(interleaved, pairs));
    }
}

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

// Some rows of a panel's outputs.
struct Block {
    int64_t first_row, rows, first_output;
};

// Calls sink(block, outputs) for each block of rows and some panels, where outputs(row, half) are 16 of a row's 32.
template <typename Sink>
void multiply_in_bf16(const LinearLayer &layer, const TileRows &rows, PanelRange panels, const Scratch &scratch,
                      const Sink &sink) {
    const TileScope tiles;
    const int64_t row_bytes = 2 * layer.input_width, half_bytes = kTileRows * layer.input_width;
    const int64_t groups = (rows.rows + kGroupRows - 1) / kGroupRows;
    float *sums = scratch.group_sums;
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        const int64_t output = panel * kPanelWidth;
        const char *packed = layer.weights + 2 * panel * half_bytes;
        Fetcher fetcher(packed + 2 * half_bytes, panel + 1 < panels.last ? 2 * half_bytes : 0,
                        groups * row_bytes / kLineBytes * 2);
        const __m512 biases[] = {_mm512_load_ps(layer.biases + output), _mm512_load_ps(layer.biases + output + 16)};
        for (int64_t first = 0; first < rows.rows; first += kGroupRows) {
            const int64_t left = rows.rows - first, count = left < kGroupRows ? left : kGroupRows;
            const auto multiply = kMultiplyGroup[(count + kTileRows - 1) / kTileRows - 1];
            for (int half = 0; half < 2; ++half) {
                const float *scales = layer.block_scales + output + half * kTileRows;
                multiply(rows.tiles + first * row_bytes, packed + half * half_bytes, scales, layer, scratch.converted,
                         sums + half * kTileRows, fetcher);
            }
            sink(Block{first, count, output}, [&](int64_t row, int half) {
                return _mm512_add_ps(_mm512_load_ps(sums + row * kPanelWidth + half * kTileRows), biases[half]);
            });
        }
    }
}

template <typename Sink>
void multiply_layer(const LinearLayer &layer, const TileRows &rows, PanelRange panels, void *memory, const Sink &sink) {
    const Scratch scratch = partition_scratch(0, memory);
    if (!layer.rounds_inputs()) return multiply_in_bf16(layer, rows, panels, scratch, sink);
    multiply_panels(layer, rows, panels, scratch.sums, [&](const BlockSums &block) {
        const PanelScales scales(layer, block.panel);
        sink(Block{block.first_row, block.rows, block.panel * kPanelWidth},
             [&](int64_t row, int half) { return scales.outputs(block.sums + row * kPanelWidth, half); });
    });
}

void multiply(const LinearLayer &layer, const TileRows &rows, PanelRange panels, float *const *parts,
              int64_t part_width, void *memory) {
    multiply_layer(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
        float *to =
            parts[block.first_output / part_width] + block.first_row * part_width + block.first_output % part_width;
        for (int64_t row = 0; row < block.rows; ++row, to += part_width) {
            _mm512_storeu_ps(to, outputs(row, 0));
            _mm512_storeu_ps(to + 16, outputs(row, 1));
        }
    });
}

// exp(x): 2**n * 2**f by a polynomial of degree 5.
inline __m512 exponentials(__m512 x) {
    const __m512 powers = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
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

void multiply_gelu(const LinearLayer &layer, const LinearLayer &next, const TileRows &rows, PanelRange panels,
                   char *tiles, void *memory) {
    multiply_layer(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
        for (int64_t row = 0; row < block.rows; ++row) {
            for (int half = 0; half < 2; ++half) {
                store_bf16(tiles, next, block.first_row + row, block.first_output + 16 * half,
                           tanh_gelu(outputs(row, half)));
            }
        }
    });
}

void multiply_add(const LinearLayer &layer, const TileRows &rows, PanelRange panels, float *sums, void *memory) {
    multiply_layer(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
        float *to = sums + block.first_row * layer.output_width + block.first_output;
        for (int64_t row = 0; row < block.rows; ++row, to += layer.output_width) {
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), outputs(row, 0)));
            _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), outputs(row, 1)));
        }
    });
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

void attend_head(const StepAttention &from, int64_t row, int64_t head, const Scratch &scratch, int64_t attended_count,
                 const LinearLayer &layer, char *tiles) {
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
        store_bf16(tiles, layer, row, head * width + d, _mm512_mul_ps(sum, inverse));
    }
}

void attend(const StepAttention &from, const LinearLayer &layer, RowRange rows, char *tiles, void *memory) {
    const Scratch scratch = partition_scratch(from.positions, memory);
    for (int64_t row = rows.first; row < rows.last; ++row) {
        const uint8_t *is_attended = from.is_attended + row * from.attended_stride;
        int64_t count = 0;
        for (int64_t position = 0; position < from.positions; ++position) {
            if (is_attended[position]) scratch.attended[count++] = static_cast<int32_t>(position);
        }
        for (int64_t head = 0; head < from.heads; ++head) attend_head(from, row, head, scratch, count, layer, tiles);
    }
}

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

void choose(const LinearLayer &layer, const TileRows &rows, PanelRange panels, int64_t word_count, WordChoice *choices,
            float *stored, void *memory) {
    multiply_layer(layer, rows, panels, memory, [&](const Block &block, const auto &outputs) {
        const int64_t first = block.first_output;
        const __mmask16 words[] = {existing(first, word_count), existing(first + 16, word_count)};
        for (int64_t row = block.first_row; row < block.first_row + block.rows; ++row) {
            WordChoice &choice = choices[row];
            const __m512 logits[] = {outputs(row - block.first_row, 0), outputs(row - block.first_row, 1)};
            const __m512 larger = _mm512_max_ps(logits[0], logits[1]);
            if (above(larger, choice.largest)) raise(choice, larger);
            const __m512 largest = _mm512_set1_ps(choice.largest);
            const __m512 added = _mm512_add_ps(exponentials(_mm512_sub_ps(logits[0], largest)),
                                               exponentials(_mm512_sub_ps(logits[1], largest)));
            _mm512_store_ps(choice.sums, _mm512_add_ps(_mm512_load_ps(choice.sums), added));
            if (above(larger, choice.logits[kCandidates - 1])) {
                insert_better(choice, logits[0], words[0], first);
                insert_better(choice, logits[1], words[1], first + 16);
            }
            if (stored) {
                float *to = stored + row * word_count + first;
                _mm512_mask_storeu_ps(to, words[0], logits[0]);
                _mm512_mask_storeu_ps(to + 16, words[1], logits[1]);
            }
        }
    });
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

}  // namespace

const Gpt2Variant kGpt2Amx = {"amx",    has_amx,       tile_bytes,   scratch_bytes, put,       attend,
                              multiply, multiply_gelu, multiply_add, choose,        recompute, subtract};

}  // namespace patchcaption
