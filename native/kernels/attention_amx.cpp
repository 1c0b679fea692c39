// Attention on Intel AMX, by blocks of queries and of keys whose scores stay in the first-level cache.
//
// Queries, keys, values and the weights of values are bfloat16, sums float32. A weight is a power of two whose exponent
// is rounded to 1/64 and whose first 7 bits come from a table: it is exact to 0.9%, 0.35% in the mean. Weights are
// relative to the largest score of the first block of keys, and to a later one where that is far larger: only the
// quotient of the sums matters.
//
// Shapes: T tokens, H heads, W their width; Q queries of a block, K keys of a block.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "amx_tiles.h"
#include "attention_interface.h"

namespace patchcaption {
namespace {

constexpr int64_t kQueries = 2 * kTileRows;
constexpr int64_t kKeys = 128;
// No multiple of 1024 bytes: rows would fall on the same cache sets.
constexpr int64_t kScoreStride = kKeys + kTileRows;
constexpr float kMaxGrowth = 24;                   // weights may reach 2**24 before sums are scaled down
constexpr float kSteps = 64, kExponentBias = 127;  // of a weight's exponent
constexpr float kLog2E = 1.44269504f;
constexpr float kMissing = -1e30f;  // the score of a key that is not there

// The scratch memory of one thread.
struct Scratch {
    char *key_tiles;     // padded T / 16 x W / 32 tiles: pairs of elements by keys
    char *value_tiles;   // padded T / 32 x W / 16 tiles: pairs of keys by elements
    char *query_tiles;   // 2 x W / 32 tiles: queries by elements
    char *weight_tiles;  // 2 x K / 32 tiles: queries by keys
    float *scores;       // (Q, kScoreStride)
    float *sums;         // (Q, W) of weighted values
    __m512 *totals;      // (Q,) of weights, by lanes
    float *references;   // (Q,) the score, in powers of two, that weights are relative to
};

int64_t scratch_bytes(const AttentionShape &shape) {
    const int64_t tokens = round_up(shape.tokens, kTileDepth), width = shape.head_width;
    return 4 * tokens * width + 2 * kQueries * width + 2 * kQueries * kKeys + 4 * kQueries * kScoreStride +
           4 * kQueries * width + 64 * kQueries + 4 * kQueries + 64;
}

Scratch partition_scratch(const AttentionShape &shape, void *memory) {
    const int64_t tokens = round_up(shape.tokens, kTileDepth), width = shape.head_width;
    ScratchPartition partition(memory);
    Scratch scratch;
    partition.take(scratch.key_tiles, 2 * tokens * width);
    partition.take(scratch.value_tiles, 2 * tokens * width);
    partition.take(scratch.query_tiles, 2 * kQueries * width);
    partition.take(scratch.weight_tiles, 2 * kQueries * kKeys);
    partition.take(scratch.scores, kQueries * kScoreStride);
    partition.take(scratch.sums, kQueries * width);
    partition.take(scratch.totals, kQueries);
    partition.take(scratch.references, kQueries);
    return scratch;
}

// 32 elements as bfloat16.
inline __m512i load_bf16(const float *from) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
}
inline __m512i load_bf16(const uint16_t *from) { return _mm512_loadu_si512(from); }

// The elements of one head: `first` points to those of the first token.
template <typename Element>
struct Tokens {
    const Element *first;
    int64_t count, stride;

    // 32 elements of a token from `d` on; zeros past the last token.
    __m512i load(int64_t token, int64_t d) const {
        return token < count ? load_bf16(first + token * stride + d) : _mm512_setzero_si512();
    }
};

template <typename Element>
void pack_keys(const Tokens<Element> &keys, int64_t width, char *tiles) {
    for (int64_t key = 0; key < round_up(keys.count, kTileDepth); key += kTileRows) {
        for (int64_t d = 0; d < width; d += kTileDepth, tiles += kTileBytes) {
            __m512i words[16];
            for (int64_t i = 0; i < kTileRows; ++i) words[i] = keys.load(key + i, d);
            transpose(words);
            std::memcpy(tiles, words, kTileBytes);
        }
    }
}

// Which of 32 keys the weight at a place of a tile's row is of: two vectors of 16 are packed by fours.
inline int64_t weight_order(int64_t place) { return place / 8 * 4 + place % 4 + place / 4 % 2 * 16; }

template <typename Element>
void pack_values(const Tokens<Element> &values, int64_t width, char *tiles) {
    const __m512i evens = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i odds = _mm512_add_epi16(evens, _mm512_set1_epi16(16));
    const int64_t tiles_across = width / kTileRows;
    for (int64_t key = 0; key < round_up(values.count, kTileDepth); key += kTileDepth) {
        for (int64_t d = 0; d < width; d += kTileDepth) {
            char *to = tiles + (key / kTileDepth * tiles_across + d / kTileRows) * kTileBytes;
            for (int64_t pair = 0; pair < 16; ++pair) {
                const int64_t first_key = key + weight_order(2 * pair);
                const __m512i first = values.load(first_key, d), second = values.load(first_key + 1, d);
                _mm512_store_si512(to + 64 * pair, _mm512_permutex2var_epi16(first, evens, second));
                _mm512_store_si512(to + kTileBytes + 64 * pair, _mm512_permutex2var_epi16(first, odds, second));
            }
        }
    }
}

template <typename Element>
void pack_queries(const Tokens<Element> &queries, int64_t start, int64_t width, char *tiles) {
    for (int64_t group = 0; group < kQueries; group += kTileRows) {
        for (int64_t d = 0; d < width; d += kTileDepth, tiles += kTileBytes) {
            for (int64_t i = 0; i < kTileRows; ++i) {
                _mm512_store_si512(tiles + 64 * i, queries.load(start + group + i, d));
            }
        }
    }
}

// Adds to four tiles of sums, (32, 32) at `sums`, the products of `depth` pairs of tiles: `left` and `left_below` one
// after another, `right` and the one `right_across` bytes after it, `right_step` bytes from pair to pair.
inline void multiply(const char *left, const char *left_below, const char *right, int64_t right_across,
                     int64_t right_step, int64_t depth) {
    for (int64_t i = 0; i < depth; ++i) {
        _tile_loadd(4, left + i * kTileBytes, 64);
        _tile_loadd(6, right + i * right_step, 64);
        _tile_loadd(7, right + i * right_step + right_across, 64);
        _tile_loadd(5, left_below + i * kTileBytes, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

inline void store_sums(float *sums, int64_t stride) {
    _tile_stored(0, sums, 4 * stride);
    _tile_stored(1, sums + kTileRows, 4 * stride);
    _tile_stored(2, sums + kTileRows * stride, 4 * stride);
    _tile_stored(3, sums + kTileRows * stride + kTileRows, 4 * stride);
}

inline void load_sums(const float *sums, int64_t stride) {
    _tile_loadd(0, sums, 4 * stride);
    _tile_loadd(1, sums + kTileRows, 4 * stride);
    _tile_loadd(2, sums + kTileRows * stride, 4 * stride);
    _tile_loadd(3, sums + kTileRows * stride + kTileRows, 4 * stride);
}

// scores (Q, `keys`) = queries @ a block of keys.
void multiply_keys(const Scratch &scratch, int64_t width, int64_t first_key, int64_t keys) {
    const int64_t depth = width / kTileDepth;
    for (int64_t key = 0; key < keys; key += kTileDepth) {
        const char *tiles = scratch.key_tiles + (first_key + key) / kTileRows * depth * kTileBytes;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        multiply(scratch.query_tiles, scratch.query_tiles + depth * kTileBytes, tiles, depth * kTileBytes, kTileBytes,
                 depth);
        store_sums(scratch.scores + key, kScoreStride);
    }
}

// sums (Q, W) += weights @ a block of values.
void multiply_values(const Scratch &scratch, int64_t width, int64_t first_key, int64_t keys) {
    const int64_t across = width / kTileRows;
    const char *tiles = scratch.value_tiles + first_key / kTileDepth * across * kTileBytes;
    for (int64_t d = 0; d < width; d += kTileDepth) {
        load_sums(scratch.sums + d, width);
        multiply(scratch.weight_tiles, scratch.weight_tiles + kKeys / kTileDepth * kTileBytes,
                 tiles + d / kTileRows * kTileBytes, kTileBytes, across * kTileBytes, keys / kTileDepth);
        store_sums(scratch.sums + d, width);
    }
}

// The 7 bits after the leading one of 2**(i / 64), for i from 0 to 63.
struct Mantissas {
    alignas(64) uint8_t bits[64];

    constexpr Mantissas() : bits() {
        constexpr double kStep = 1.0108892860517005;  // 2**(1 / 64)
        double power = 1;
        for (uint8_t &mantissa : bits) {
            mantissa = static_cast<uint8_t>((power - 1) * 128 + 0.5);
            power *= kStep;
        }
    }
};
constexpr Mantissas kMantissas;

// 2**(x / 64 - 127) as bfloat16, of 32 numbers of 16 bits; 0 of those below 64.
inline __m512i powers_of_two(__m512i x, __m512i mantissas) {
    constexpr __mmask64 kLowBytes = 0x5555555555555555;
    const __m512i fractions = _mm512_maskz_permutexvar_epi8(kLowBytes, x, mantissas);  // by the last 6 bits of a byte
    const __m512i doubled = _mm512_add_epi16(x, x), exponent_bits = _mm512_set1_epi16(static_cast<int16_t>(0xff80));
    return _mm512_or_si512(_mm512_and_si512(doubled, exponent_bits), fractions);
}

// Moves a query's reference up to its largest score, scaling down what was summed.
void raise_reference(const Scratch &scratch, int64_t query, int64_t width, float score) {
    const __m512 factor = _mm512_set1_ps(std::exp2(scratch.references[query] - score));
    scratch.references[query] = score;
    scratch.totals[query] = _mm512_mul_ps(scratch.totals[query], factor);
    for (int64_t d = 0; d < width; d += 16) {
        float *sums = scratch.sums + query * width + d;
        _mm512_store_ps(sums, _mm512_mul_ps(_mm512_load_ps(sums), factor));
    }
}

// Turns scores (Q, `keys`) into tiles of weights. `scale` makes powers of two of scores.
void weigh(const Scratch &scratch, int64_t width, int64_t keys, bool is_first, float scale) {
    for (int64_t query = 0; query < kQueries; ++query) {
        const float *scores = scratch.scores + query * kScoreStride;
        __m512 largest = _mm512_load_ps(scores), other = _mm512_load_ps(scores + 16);
        for (int64_t key = 32; key < keys; key += 32) {
            largest = _mm512_max_ps(largest, _mm512_load_ps(scores + key));
            other = _mm512_max_ps(other, _mm512_load_ps(scores + key + 16));
        }
        largest = _mm512_mul_ps(_mm512_max_ps(largest, other), _mm512_set1_ps(scale));
        if (is_first) {
            scratch.references[query] = _mm512_reduce_max_ps(largest);
        } else if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(scratch.references[query] + kMaxGrowth), _CMP_GT_OQ)) {
            raise_reference(scratch, query, width, _mm512_reduce_max_ps(largest));
        }
        const __m512 scales = _mm512_set1_ps(scale * kSteps);
        const __m512 offset = _mm512_set1_ps((kExponentBias - scratch.references[query]) * kSteps);
        const __m512i mantissas = _mm512_load_si512(kMantissas.bits), ones = _mm512_set1_epi16(0x3f80);
        char *to =
            scratch.weight_tiles + query / kTileRows * (kKeys / kTileDepth) * kTileBytes + query % kTileRows * 64;
        __m512 total = scratch.totals[query];
        for (int64_t key = 0; key < keys; key += 32, to += kTileBytes) {
            const __m512i low = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(scores + key), scales, offset));
            const __m512i high = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(scores + key + 16), scales, offset));
            const __m512i weights = powers_of_two(_mm512_packus_epi32(low, high), mantissas);
            total = _mm512_dpbf16_ps(total, (__m512bh)weights, (__m512bh)ones);
            _mm512_store_si512(to, weights);
        }
        scratch.totals[query] = total;
    }
}

// Keys past the last get no weight.
void hide_missing_keys(const Scratch &scratch, int64_t existing, int64_t keys) {
    for (int64_t query = 0; query < kQueries; ++query) {
        for (int64_t key = existing; key < keys; ++key) scratch.scores[query * kScoreStride + key] = kMissing;
    }
}

inline void store_elements(float *to, __m512 values) { _mm512_storeu_ps(to, values); }
inline void store_elements(uint16_t *to, __m512 values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

// Makes its thread take numbers too small for a normal float32 for zeros, as tile products do: with them weights far
// below the largest take ten times as long.
class FlushToZero {
  public:
    FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushResults | kFlushOperands); }
    FlushToZero(const FlushToZero &) = delete;
    FlushToZero &operator=(const FlushToZero &) = delete;
    ~FlushToZero() { _mm_setcsr(before_); }

  private:
    static constexpr unsigned kFlushResults = 0x8000, kFlushOperands = 0x0040;
    unsigned before_;
};

template <typename Element>
Tokens<Element> tokens_of(const AttentionShape &shape, const patchcaption_heads &heads, const AttentionTask &task) {
    const Element *first = static_cast<const Element *>(heads.first);
    return {first + task.image * heads.image_stride + task.head * heads.head_stride, shape.tokens, heads.token_stride};
}

// attended (`count`, W) of the first queries of a block: the sums divided by the totals of weights.
template <typename Element>
void store_attended(const Scratch &scratch, int64_t width, int64_t count, Element *attended, int64_t stride) {
    for (int64_t query = 0; query < count; ++query) {
        const __m512 inverse = _mm512_set1_ps(1 / _mm512_reduce_add_ps(scratch.totals[query]));
        for (int64_t d = 0; d < width; d += 16) {
            const __m512 sums = _mm512_load_ps(scratch.sums + query * width + d);
            store_elements(attended + query * stride + d, _mm512_mul_ps(sums, inverse));
        }
    }
}

template <typename Element>
void attend_elements(const AttentionShape &shape, const AttentionInputs &inputs, const AttentionTask &task,
                     Element *attended, const Scratch &scratch) {
    const int64_t width = shape.head_width, stride = shape.heads * width;
    const Tokens<Element> queries = tokens_of<Element>(shape, *inputs.queries, task);
    pack_keys(tokens_of<Element>(shape, *inputs.keys, task), width, scratch.key_tiles);
    pack_values(tokens_of<Element>(shape, *inputs.values, task), width, scratch.value_tiles);
    attended += (task.image * shape.tokens * shape.heads + task.head) * width;
    const int64_t padded = round_up(shape.tokens, kTileDepth);
    for (int64_t start = task.first_query; start < task.last_query; start += kQueries) {
        pack_queries(queries, start, width, scratch.query_tiles);
        std::memset(scratch.sums, 0, 4 * kQueries * width);
        for (int64_t query = 0; query < kQueries; ++query) scratch.totals[query] = _mm512_setzero_ps();
        for (int64_t key = 0; key < padded; key += kKeys) {
            const int64_t count = padded - key < kKeys ? padded - key : kKeys;
            multiply_keys(scratch, width, key, count);
            if (key + count > shape.tokens) hide_missing_keys(scratch, shape.tokens - key, count);
            weigh(scratch, width, count, key == 0, inputs.scale * kLog2E);
            multiply_values(scratch, width, key, count);
        }
        const int64_t count = task.last_query - start < kQueries ? task.last_query - start : kQueries;
        store_attended(scratch, width, count, attended + start * stride, stride);
    }
}

void attend(const AttentionShape &shape, const AttentionInputs &inputs, const AttentionTask &task, void *attended,
            void *memory) {
    const TileScope tiles;
    const FlushToZero small_weights;
    const Scratch scratch = partition_scratch(shape, memory);
    if (shape.is_bf16) attend_elements(shape, inputs, task, static_cast<uint16_t *>(attended), scratch);
    else attend_elements(shape, inputs, task, static_cast<float *>(attended), scratch);
}

}  // namespace

const AttentionVariant kAttentionAmx = {"amx", kQueries, has_amx, scratch_bytes, attend};

}  // namespace patchcaption
