// Intel AMX: products of bfloat16 tiles, 16 times as fast as AVX-512 multiplies floats.
//
// A row becomes one or two planes of bfloat16, each with a scale: an int8 or bfloat16 number is one exactly, a float16
// exactly two, a float32 two to 16 bits; `fine` is the second plane where it is used. Directions and weights become a
// high and a low part in the same way, so what is lost is about 2**-16 of each product, as in a float32 sum. Rows of
// bytes are multiplied as they are, right from the bank, by directions of two bytes.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "simd_avx512.h"

namespace patchcaption {
namespace {

constexpr int64_t kTileRows = 16;   // of a tile; it holds 16 x 32 bfloat16 or 16 x 16 floats
constexpr int64_t kTileDepth = 32;  // numbers that one product sums up,
constexpr int64_t kByteDepth = 64;  // or bytes
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kChunks = kBlock / kTileDepth;

bool is_usable() {
    // Linux gives a process the tile registers when it asks for them.
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = [] {
        unsigned a, b, c, d;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        const bool has_tiles = (d >> 24 & 1) && (d >> 22 & 1) && (d >> 25 & 1);  // AMX-TILE, AMX-BF16, AMX-INT8
        return has_tiles && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") &&
               syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return granted;
}

struct alignas(64) TileShapes {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What one thread works in. G = padded R / 16 groups of regions, W = padded D.
struct Scratch {
    char *directions[2];  // high and low: G x W/32 tiles, pairs of numbers along D by regions;
                          // or G x W/64 tiles, fours of bytes along D by regions
    float *byte_steps;    // (padded R,) the worth of a high byte's 1; a low one's is 1/254 of it
    int32_t *byte_sums;   // (3, 16, 16)
    char *planes[2];      // kBlock/16 x W/32 tiles: rows by numbers along D
    char *pairs[2];       // kBlock/32 x W/16 tiles: pairs of rows by numbers along D, those of a pair side by side
    float *sums[2];       // (kBlock, 16) of each plane
    float *weights;       // (kBlock, 16)
    char *parts[3];       // weights as tiles (kChunks): of plane 0 high and low, of plane 1 high
};

int64_t directions_bytes(const Query &query) {
    return query.padded_regions / kRegionsPadding * (query.padded_width / kTileDepth) * kTileBytes;
}

int64_t scratch_bytes(const patchcaption_bank &, const Query &query) {
    return 2 * directions_bytes(query) + 4 * query.padded_regions + 3 * kTileBytes +
           2 * 2 * kBlock * query.padded_width * 2 + 3 * kBlock * kRegionsPadding * 4 + 3 * kChunks * kTileBytes;
}

Scratch divide(const Query &query, void *memory) {
    char *place = static_cast<char *>(memory);
    const auto take = [&place](int64_t bytes) {
        char *taken = place;
        place += bytes;
        return taken;
    };
    Scratch scratch;
    for (char *&one : scratch.directions) one = take(directions_bytes(query));
    scratch.byte_steps = reinterpret_cast<float *>(take(4 * query.padded_regions));
    scratch.byte_sums = reinterpret_cast<int32_t *>(take(3 * kTileBytes));
    for (char *&one : scratch.planes) one = take(kBlock * query.padded_width * 2);
    for (char *&one : scratch.pairs) one = take(kBlock * query.padded_width * 2);
    for (float *&one : scratch.sums) one = reinterpret_cast<float *>(take(kBlock * kRegionsPadding * 4));
    scratch.weights = reinterpret_cast<float *>(take(kBlock * kRegionsPadding * 4));
    for (char *&one : scratch.parts) one = take(kChunks * kTileBytes);
    return scratch;
}

// bfloat16 numbers are handled as the low halves of 32-bit words, 16 to a vector.

inline __m512i rounded(__m512 values) {
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(values), _mm512_set1_epi32(0x8000)), 16);
}

inline __m512 from_words(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }

// Floats as bfloat16, and what that leaves.
inline void split(__m512 values, __m512i &high, __m512i &low) {
    high = rounded(values);
    low = rounded(_mm512_sub_ps(values, from_words(high)));
}

// Two numbers in each word, as a tile's columns hold them.
inline __m512i paired(__m512i first, __m512i second) { return _mm512_or_si512(first, _mm512_slli_epi32(second, 16)); }

// Columns to rows: words[i] lane j to words[j] lane i.
inline void transpose(__m512i words[16]) {
    __m512i half[16];
    for (int i = 0; i < 16; i += 2) {
        half[i] = _mm512_unpacklo_epi32(words[i], words[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(words[i], words[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        words[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
        words[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
        words[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
        words[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        half[i] = _mm512_shuffle_i32x4(words[i], words[i + 4], 0x88);
        half[i + 4] = _mm512_shuffle_i32x4(words[i], words[i + 4], 0xdd);
        half[i + 8] = _mm512_shuffle_i32x4(words[i + 8], words[i + 12], 0x88);
        half[i + 12] = _mm512_shuffle_i32x4(words[i + 8], words[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        words[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        words[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    }
}

// Directions (padded R, W) as tiles: a tile's row is a pair of numbers along D, its columns are 16 regions. A pair is
// of numbers 16 apart, as in unpack_block.
void pack_directions(const Query &query, const Scratch &scratch) {
    int64_t tile = 0;
    for (int64_t first = 0; first < query.padded_regions; first += kRegionsPadding) {
        for (int64_t d = 0; d < query.padded_width; d += kTileDepth, ++tile) {
            __m512i high[16], low[16];
            for (int64_t region = 0; region < kRegionsPadding; ++region) {
                const float *from = query.directions + (first + region) * query.padded_width + d;
                __m512i highs[2], lows[2];
                split(_mm512_loadu_ps(from), highs[0], lows[0]);
                split(_mm512_loadu_ps(from + 16), highs[1], lows[1]);
                high[region] = paired(highs[0], highs[1]);
                low[region] = paired(lows[0], lows[1]);
            }
            transpose(high);
            transpose(low);
            std::memcpy(scratch.directions[0] + tile * kTileBytes, high, kTileBytes);
            std::memcpy(scratch.directions[1] + tile * kTileBytes, low, kTileBytes);
        }
    }
}

inline __m512i bytes_as_words(const int8_t *from, __mmask16 present) {
    const __m512i whole = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(present, from));
    return _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(whole)), 16);  // exact: they have 7 bits
}

// What rows are multiplied as: `kStorage` alone or with `fine`, in one plane of bfloat16 or two.
template <int kStorage, bool kFine>
struct Planes {
    static constexpr bool kIsNarrow = kStorage == PATCHCAPTION_INT8 || kStorage == PATCHCAPTION_BF16;
    static constexpr int kCount = kIsNarrow && !kFine ? 1 : 2;

    static inline void split_sum(__m512 values, const int8_t *fine, float fine_step, __mmask16 present,
                                 __m512i words[2]) {
        if constexpr (kFine) {
            const __m512 left = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(present, fine)));
            values = _mm512_add_ps(values, _mm512_mul_ps(left, _mm512_set1_ps(fine_step)));
        }
        split(values, words[0], words[1]);
    }

    // 16 numbers from `place` on, those that are `present`, and `fine` of them, whose steps are `fine_step` of theirs.
    static inline void read(const patchcaption_bank &bank, int64_t place, const int8_t *fine, float fine_step,
                            __mmask16 present, __m512i words[2]) {
        if constexpr (kStorage == PATCHCAPTION_INT8) {
            words[0] = bytes_as_words(static_cast<const int8_t *>(bank.rows) + place, present);
        } else if constexpr (kStorage == PATCHCAPTION_BF16) {
            const uint16_t *from = static_cast<const uint16_t *>(bank.rows) + place;
            words[0] = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, from));
        } else if constexpr (kStorage == PATCHCAPTION_FP16) {
            const uint16_t *from = static_cast<const uint16_t *>(bank.rows) + place;
            split_sum(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, from)), fine, fine_step, present, words);
        } else {
            const float *from = static_cast<const float *>(bank.rows) + place;
            split_sum(_mm512_maskz_loadu_ps(present, from), fine, fine_step, present, words);
        }
        if constexpr (kFine && kIsNarrow) words[1] = bytes_as_words(fine, present);
    }
};

// The next block, asked for a little at a time while this one is worked on; NULL where there is none.
template <int kStorage, bool kFine>
struct Ahead {
    static constexpr int64_t kBytes = kStorage == PATCHCAPTION_FP32 ? 4 : kStorage == PATCHCAPTION_INT8 ? 1 : 2;

    const char *rows;
    const int8_t *fine;

    void ask_for(int64_t begin, int64_t end) const {
        if (!rows) return;
        for (int64_t byte = begin * kBytes; byte < end * kBytes; byte += 64) _mm_prefetch(rows + byte, _MM_HINT_T1);
        if constexpr (!kFine) return;
        for (int64_t byte = begin; byte < end; byte += 64) _mm_prefetch(fine + byte, _MM_HINT_T1);
    }
};

// The worth of a step of `fine` in steps of the row, where both are added up before they are multiplied.
template <int kStorage, bool kFine>
inline float fine_step(const patchcaption_bank &bank, int64_t row) {
    if constexpr (!kFine || Planes<kStorage, kFine>::kIsNarrow) return 0;
    return bank.fine_scales[row] / (bank.scales ? bank.scales[row] : 1.0f);
}

// Two rows' 32 numbers from d on, into the tiles of each plane and of pairs.
template <int kStorage, bool kFine, bool kWithPlanes>
inline void unpack_pair(const patchcaption_bank &bank, const int64_t places[2], const int8_t *const fine[2],
                        const float fine_steps[2], const __mmask16 present[2][2], const Scratch &scratch,
                        int64_t tile_place, int64_t pairs_place) {
    __m512i words[2][2][2];  // of each row and each 16 numbers, the planes
    for (int row = 0; row < 2; ++row) {
        for (int half = 0; half < 2; ++half) {
            Planes<kStorage, kFine>::read(bank, places[row] + 16 * half, fine[row] + 16 * half, fine_steps[row],
                                          present[row][half], words[row][half]);
        }
    }
    for (int plane = 0; plane < Planes<kStorage, kFine>::kCount; ++plane) {
        for (int one = 0; one < 2; ++one) {
            if constexpr (kWithPlanes) {
                _mm512_store_si512(scratch.planes[plane] + tile_place + 64 * one,
                                   paired(words[one][0][plane], words[one][1][plane]));
            }
            _mm512_store_si512(scratch.pairs[plane] + pairs_place + kTileBytes * one,
                               paired(words[0][one][plane], words[1][one][plane]));
        }
    }
}

// A block of rows as tiles of each plane, unless those are not wanted, and of pairs of rows; rows past the last are
// zero.
template <int kStorage, bool kFine, bool kWithPlanes>
void unpack_block(const patchcaption_bank &bank, const Query &query, int64_t start, int64_t rows, const int8_t *fine,
                  const Scratch &scratch) {
    const int64_t tiles = query.padded_width / kTileDepth;
    for (int64_t chunk = 0; chunk < kBlock;
         chunk += kTileDepth) {  // tile by tile, so that what is written lies together
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t d = tile * kTileDepth;
            const uint32_t inside = bank.width - d >= kTileDepth ? ~0u : (1u << (bank.width - d)) - 1;
            for (int64_t row = 0; row < kTileDepth; row += 2) {
                int64_t places[2];
                const int8_t *fine_places[2];
                float fine_steps[2];
                __mmask16 present[2][2];
                for (int one = 0; one < 2; ++one) {
                    const bool is_there = chunk + row + one < rows;
                    const int64_t known = is_there ? chunk + row + one : 0;
                    places[one] = (start + known) * bank.width + d;
                    fine_places[one] = fine + known * bank.width + d;
                    fine_steps[one] = fine_step<kStorage, kFine>(bank, start + known);
                    present[one][0] = is_there ? static_cast<__mmask16>(inside) : 0;
                    present[one][1] = is_there ? static_cast<__mmask16>(inside >> 16) : 0;
                }
                const int64_t tile_row = chunk + row;
                unpack_pair<kStorage, kFine, kWithPlanes>(
                    bank, places, fine_places, fine_steps, present, scratch,
                    (tile_row / kTileRows * tiles + tile) * kTileBytes + row % kTileRows * 64,
                    (chunk / kTileDepth * tiles + tile) * 2 * kTileBytes + row / 2 * 64);
            }
        }
    }
}

// sums[plane] (kBlock, 16) = rows of each plane times 16 directions.
void multiply(const Query &query, int64_t group, int planes, const Scratch &scratch) {
    const int64_t tiles = query.padded_width / kTileDepth;
    const char *high = scratch.directions[0] + group * tiles * kTileBytes;
    const char *low = scratch.directions[1] + group * tiles * kTileBytes;
    for (int64_t row = 0; row < kBlock; row += 2 * kTileRows) {
        for (int plane = 0; plane < planes; ++plane) {
            const char *upper = scratch.planes[plane] + row / kTileRows * tiles * kTileBytes;
            const char *lower = upper + tiles * kTileBytes;
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t place = 0; place < tiles * kTileBytes; place += kTileBytes) {
                _tile_loadd(4, high + place, 64);
                _tile_loadd(2, upper + place, 64);
                _tile_loadd(3, lower + place, 64);
                _tile_dpbf16ps(0, 2, 4);
                _tile_dpbf16ps(1, 3, 4);
                if (plane == 0) {
                    _tile_loadd(5, low + place, 64);
                    _tile_dpbf16ps(0, 2, 5);
                    _tile_dpbf16ps(1, 3, 5);
                }
            }
            _tile_stored(0, scratch.sums[plane] + row * kRegionsPadding, 64);
            _tile_stored(1, scratch.sums[plane] + (row + kTileRows) * kRegionsPadding, 64);
        }
    }
}

// Directions (padded R, W) as bytes, high and low: a tile's row is four numbers along D, its columns are 16 regions.
void pack_byte_directions(const Query &query, const Scratch &scratch) {
    const int64_t width = query.padded_width;
    for (int64_t region = 0; region < query.padded_regions; ++region) {
        const float *from = query.directions + region * width;
        float largest = 1e-30f;
        for (int64_t d = 0; d < width; ++d) largest = std::fmax(largest, std::fabs(from[d]));
        const float step = largest / 127;
        scratch.byte_steps[region] = step;
        const int64_t column =
            region / kRegionsPadding * (width / kByteDepth) * kTileBytes + region % kRegionsPadding * 4;
        for (int64_t d = 0; d < width; ++d) {
            const float high = std::nearbyint(from[d] / step);
            const int64_t place = column + d / kByteDepth * kTileBytes + d % kByteDepth / 4 * 64 + d % 4;
            scratch.directions[0][place] = static_cast<char>(static_cast<int8_t>(high));
            scratch.directions[1][place] =
                static_cast<char>(static_cast<int8_t>(std::nearbyint((from[d] / step - high) * 254)));
        }
    }
}

// sums[plane] (kBlock, 16) as from `multiply`, of rows of bytes right from the bank, and of `fine`.
template <bool kFine>
void multiply_bytes(const patchcaption_bank &bank, const Query &query, int64_t start, const int8_t *fine, int64_t group,
                    const Scratch &scratch) {
    const int64_t width = query.padded_width, tiles = width / kByteDepth;
    const char *high = scratch.directions[0] + group * tiles * kTileBytes;
    const char *low = scratch.directions[1] + group * tiles * kTileBytes;
    const Floats step = floats(scratch.byte_steps + group * kRegionsPadding), low_step = step / 254.0f;
    for (int64_t row = 0; row < kBlock; row += kTileRows) {
        const int8_t *rows = static_cast<const int8_t *>(bank.rows) + (start + row) * width,
                     *fine_rows = fine + row * width;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            _tile_loadd(3, rows + tile * kByteDepth, width);
            _tile_loadd(4, high + tile * kTileBytes, 64);
            _tile_loadd(5, low + tile * kTileBytes, 64);
            _tile_dpbssd(0, 3, 4);
            _tile_dpbssd(1, 3, 5);
            if constexpr (kFine) {
                _tile_loadd(6, fine_rows + tile * kByteDepth, width);
                _tile_dpbssd(2, 6, 4);
            }
        }
        int32_t *sums = scratch.byte_sums;
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 256, 64);
        if constexpr (kFine) _tile_stored(2, sums + 512, 64);
        for (int64_t one = 0; one < kTileRows; ++one) {
            const auto of = [&](int64_t tile) {
                return __builtin_convertvector(load<Ints>(sums + tile * 256 + one * kRegionsPadding), Floats);
            };
            store(scratch.sums[0] + (row + one) * kRegionsPadding, of(0) * step + of(1) * low_step);
            if constexpr (kFine) store(scratch.sums[1] + (row + one) * kRegionsPadding, of(2) * step);
        }
    }
}

inline float scale_of(const patchcaption_bank &bank, int64_t row, int plane) {
    const bool is_narrow = bank.storage == PATCHCAPTION_INT8 || bank.storage == PATCHCAPTION_BF16;
    if (plane == 1 && is_narrow) return bank.fine_scales[row];
    return bank.scales ? bank.scales[row] : 1.0f;
}

// weights (kBlock, 16) become the logits of the planes' sums.
void finish_logits(const patchcaption_bank &bank, const Query &query, int64_t start, int64_t rows, int planes,
                   const Scratch &scratch) {
    for (int64_t row = 0; row < rows; ++row) {
        Floats values = floats(scratch.sums[0] + row * kRegionsPadding) * scale_of(bank, start + row, 0);
        if (planes == 2) values += floats(scratch.sums[1] + row * kRegionsPadding) * scale_of(bank, start + row, 1);
        store(scratch.weights + row * kRegionsPadding,
              values * (bank.inverse_norms[start + row] * query.inverse_temperature));
    }
}

// weights (kBlock, 16), times each plane's scales, as tiles of 16 regions by 32 rows.
void pack_weights(const patchcaption_bank &bank, int64_t start, int64_t rows, int planes, const Scratch &scratch) {
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
        __m512i high[2][16], low[2][16];
        for (int64_t pair = 0; pair < 16; ++pair) {
            __m512i highs[2][2], lows[2][2];
            for (int64_t one = 0; one < 2; ++one) {
                const int64_t row = chunk * kTileDepth + 2 * pair + one;
                const __m512 weights = _mm512_loadu_ps(scratch.weights + row * kRegionsPadding);
                const int64_t known = row < rows ? start + row : start;
                split(weights * scale_of(bank, known, 0), highs[0][one], lows[0][one]);
                if (planes == 2) split(weights * scale_of(bank, known, 1), highs[1][one], lows[1][one]);
            }
            high[0][pair] = paired(highs[0][0], highs[0][1]);
            low[0][pair] = paired(lows[0][0], lows[0][1]);
            if (planes == 2) high[1][pair] = paired(highs[1][0], highs[1][1]);
        }
        transpose(high[0]);
        transpose(low[0]);
        std::memcpy(scratch.parts[0] + chunk * kTileBytes, high[0], kTileBytes);
        std::memcpy(scratch.parts[1] + chunk * kTileBytes, low[0], kTileBytes);
        if (planes == 2) {
            transpose(high[1]);
            std::memcpy(scratch.parts[2] + chunk * kTileBytes, high[1], kTileBytes);
        }
    }
}

// mixed (16, W) += the tiles of weights times the pairs of rows.
template <int kStorage, bool kFine>
void add(const Query &query, const Scratch &scratch, Ahead<kStorage, kFine> ahead, float *mixed) {
    static_assert(kChunks == 2, "the weights of two chunks stay in tiles");
    const int64_t chunk_bytes = query.padded_width / kTileRows * kTileBytes;
    constexpr bool kTwo = Planes<kStorage, kFine>::kCount == 2;
    _tile_loadd(0, scratch.parts[0], 64);
    _tile_loadd(1, scratch.parts[0] + kTileBytes, 64);
    _tile_loadd(2, scratch.parts[1], 64);
    _tile_loadd(3, scratch.parts[1] + kTileBytes, 64);
    if constexpr (kTwo) {
        _tile_loadd(4, scratch.parts[2], 64);
        _tile_loadd(5, scratch.parts[2] + kTileBytes, 64);
    }
    for (int64_t d = 0; d < query.padded_width; d += kTileRows) {
        const char *pairs = scratch.pairs[0] + d / kTileRows * kTileBytes;
        _tile_loadd(6, mixed + d, query.padded_width * 4);
        _tile_loadd(7, pairs, 64);
        _tile_dpbf16ps(6, 0, 7);
        _tile_dpbf16ps(6, 2, 7);
        _tile_loadd(7, pairs + chunk_bytes, 64);
        _tile_dpbf16ps(6, 1, 7);
        _tile_dpbf16ps(6, 3, 7);
        if constexpr (kTwo) {
            const char *fine_pairs = scratch.pairs[1] + d / kTileRows * kTileBytes;
            _tile_loadd(7, fine_pairs, 64);
            _tile_dpbf16ps(6, 4, 7);
            _tile_loadd(7, fine_pairs + chunk_bytes, 64);
            _tile_dpbf16ps(6, 5, 7);
        }
        _tile_stored(6, mixed + d, query.padded_width * 4);
        ahead.ask_for(d * kBlock, (d + kTileRows) * kBlock);  // 1/48 of a block of width 768
    }
}

template <int kStorage, bool kFine, bool kInBytes>
void scan_blocks(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t end, FineRows &fine_rows,
                 Partial &partial, const Scratch &scratch) {
    constexpr int kPlanes = Planes<kStorage, kFine>::kCount;
    if constexpr (kInBytes) pack_byte_directions(query, scratch);
    else pack_directions(query, scratch);
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t rows = end - start < kBlock ? end - start : kBlock;
        const int8_t *fine = fine_rows.block(start, rows);
        Ahead<kStorage, kFine> ahead = {nullptr, fine + kBlock * bank.width};
        if (start + 2 * kBlock <= end) {
            ahead.rows = static_cast<const char *>(bank.rows) + (start + kBlock) * bank.width * ahead.kBytes;
        }
        unpack_block<kStorage, kFine, !kInBytes>(bank, query, start, rows, fine, scratch);
        for (int64_t first = 0; first < query.regions; first += kRegionsPadding) {
            const int64_t group = first / kRegionsPadding;
            if constexpr (kInBytes) multiply_bytes<kFine>(bank, query, start, fine, group, scratch);
            else multiply(query, group, kPlanes, scratch);
            finish_logits(bank, query, start, rows, kPlanes, scratch);
            soften(bank, query, start, rows, first, scratch.weights, partial);
            pack_weights(bank, start, rows, kPlanes, scratch);
            add<kStorage, kFine>(query, scratch, ahead, partial.mixed + first * query.padded_width);
            ahead.rows = nullptr;
        }
    }
}

template <int kStorage, bool kFine>
void scan_of(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t end, FineRows &fine_rows,
             Partial &partial, void *memory) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    const Scratch scratch = divide(query, memory);
    if constexpr (kStorage == PATCHCAPTION_INT8) {
        if (bank.width % kByteDepth == 0) {  // whole tiles, right from the bank
            const int64_t whole = end - (end - begin) % kBlock;
            scan_blocks<kStorage, kFine, true>(bank, query, begin, whole, fine_rows, partial, scratch);
            begin = whole;
        }
    }
    if (begin < end) scan_blocks<kStorage, kFine, false>(bank, query, begin, end, fine_rows, partial, scratch);
    _tile_release();
}

void scan(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t end, FineRows &fine_rows,
          Partial &partial, void *memory) {
    const auto chosen = [&] {
        switch (bank.storage) {
            case PATCHCAPTION_FP16:
                return query.with_fine ? scan_of<PATCHCAPTION_FP16, true> : scan_of<PATCHCAPTION_FP16, false>;
            case PATCHCAPTION_BF16:
                return query.with_fine ? scan_of<PATCHCAPTION_BF16, true> : scan_of<PATCHCAPTION_BF16, false>;
            case PATCHCAPTION_INT8:
                return query.with_fine ? scan_of<PATCHCAPTION_INT8, true> : scan_of<PATCHCAPTION_INT8, false>;
            default: return query.with_fine ? scan_of<PATCHCAPTION_FP32, true> : scan_of<PATCHCAPTION_FP32, false>;
        }
    }();
    chosen(bank, query, begin, end, fine_rows, partial, memory);
}

}  // namespace

const Variant kAmx = {"amx", 3, is_usable, scratch_bytes, scan, portable_logits, portable_add};

}  // namespace patchcaption
