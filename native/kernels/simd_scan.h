// The scan in vectors of LANES floats: what every variant has in common. A variant defines LANES and, where it
// has instructions for them, HALVES_TO_FLOATS and BYTES_TO_FLOATS, and includes this once. All of it is local to the
// including file, since the linker may not choose between copies that were compiled for different instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "scan_interface.h"

namespace patchcaption {
namespace {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

template <typename Vector, typename Number>
inline Vector load(const Number *from) {
    Vector values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats floats(const float *from) { return load<Floats>(from); }

inline void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats splat(float value) { return value - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float sum(Floats values) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
}

// exp(x) for x <= 0, to 2 units of the last place; below -87 as for -87.
inline Floats exponential(Floats x) {
    x = larger(x, splat(-87.0f));
    const Floats magic = splat(12582912.0f);  // 1.5 * 2**23: adding it rounds to whole numbers
    const Floats whole = (x * 1.44269504f + magic) - magic;
    const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats power = splat(1.9875691500e-4f);
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    const Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
    return power * load<Floats>(reinterpret_cast<const float *>(&exponent));
}

inline Floats from_bytes(const int8_t *from) {
#ifdef BYTES_TO_FLOATS
    return BYTES_TO_FLOATS(from);
#else
    return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Ints), Floats);
#endif
}

inline Floats from_bf16(const uint16_t *from) {
    const Ints bits = __builtin_convertvector(load<Halves>(from), Ints) << 16;
    return load<Floats>(reinterpret_cast<const float *>(&bits));
}

// float16 by whole numbers: its exponent and fraction one place up, then the exponent's offset mended by a product,
// which also makes the numbers below 2**-14 right.
inline Floats from_fp16(const uint16_t *from) {
#ifdef HALVES_TO_FLOATS
    return HALVES_TO_FLOATS(from);
#else
    const Ints bits = __builtin_convertvector(load<Halves>(from), Ints);
    const Ints shifted = (bits & 0x7fff) << 13;
    const Floats size = load<Floats>(reinterpret_cast<const float *>(&shifted)) * 5.192296858534828e33f;  // 2**112
    return (bits & 0x8000) != 0 ? -size : size;
#endif
}

inline Floats from_storage(const patchcaption_bank &bank, int64_t place) {
    switch (bank.storage) {
        case PATCHCAPTION_FP16: return from_fp16(static_cast<const uint16_t *>(bank.rows) + place);
        case PATCHCAPTION_BF16: return from_bf16(static_cast<const uint16_t *>(bank.rows) + place);
        case PATCHCAPTION_INT8: return from_bytes(static_cast<const int8_t *>(bank.rows) + place);
        default: return floats(static_cast<const float *>(bank.rows) + place);
    }
}

inline float one_from_storage(const patchcaption_bank &bank, int64_t place) {
    Floats values{};
    uint16_t half[LANES] = {};
    int8_t byte[LANES] = {};
    switch (bank.storage) {
        case PATCHCAPTION_FP16:
            half[0] = static_cast<const uint16_t *>(bank.rows)[place];
            values = from_fp16(half);
            break;
        case PATCHCAPTION_BF16:
            half[0] = static_cast<const uint16_t *>(bank.rows)[place];
            values = from_bf16(half);
            break;
        case PATCHCAPTION_INT8:
            byte[0] = static_cast<const int8_t *>(bank.rows)[place];
            values = from_bytes(byte);
            break;
        default: return static_cast<const float *>(bank.rows)[place];
    }
    return values[0];
}

// A row, with its `fine` unless that is NULL, as floats (padded D,), zero where padded.
void unpack(const patchcaption_bank &bank, int64_t row, const int8_t *fine, int64_t padded_width, float *to) {
    const float scale = bank.scales ? bank.scales[row] : 1.0f;
    const float fine_scale = fine ? bank.fine_scales[row] : 0.0f;
    const int64_t first = row * bank.width;
    int64_t d = 0;
    for (; d + LANES <= bank.width; d += LANES) {
        Floats values = from_storage(bank, first + d) * scale;
        if (fine) values += from_bytes(fine + d) * fine_scale;
        store(to + d, values);
    }
    for (; d < bank.width; ++d) {
        to[d] = one_from_storage(bank, first + d) * scale;
        if (fine) to[d] += static_cast<float>(fine[d]) * fine_scale;
    }
    for (; d < padded_width; ++d) to[d] = 0;
}

// Notes the rows of a block that may be among the best of a region. logits (kBlock, 16): of 16 regions from `first` on.
void offer(int64_t begin, int64_t rows, int64_t first, int64_t regions, const float *logits,
           const Floats *block_largest, Partial &partial) {
    for (int64_t lane = 0; lane < kRegionsPadding && first + lane < regions; ++lane) {
        const int64_t region = first + lane;
        if (!(block_largest[lane / LANES][lane % LANES] > partial.floors[region])) continue;
        for (int64_t row = 0; row < rows; ++row) {
            const float logit = logits[row * kRegionsPadding + lane];
            if (!(logit > partial.floors[region])) continue;
            if (partial.counts[region] == partial.capacity) partial.prune(partial, region);
            Candidate *mine = partial.candidates + region * partial.capacity;
            mine[partial.counts[region]++] = {logit, static_cast<uint32_t>(begin + row)};
        }
    }
}

// Takes up a block into the running softmax of 16 regions from `first` on; logits (kBlock, 16) become weights.
void soften(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t rows, int64_t first,
            float *logits, Partial &partial) {
    Floats block_largest[kRegionsPadding / LANES];
    for (int64_t part = 0; part < kRegionsPadding / LANES; ++part) {
        Floats now = splat(-INFINITY);
        for (int64_t row = 0; row < rows; ++row)
            now = larger(now, floats(logits + row * kRegionsPadding + part * LANES));
        block_largest[part] = now;
    }
    if (partial.capacity) offer(begin, rows, first, query.regions, logits, block_largest, partial);
    for (int64_t part = 0; part < kRegionsPadding / LANES; ++part) {
        const int64_t region = first + part * LANES;
        const Floats before = floats(partial.largest + region);
        const Floats now = larger(before, block_largest[part]);
        const Floats shrink = exponential(before - now);
        for (int64_t lane = 0; lane < LANES; ++lane) {
            if (!(now[lane] > before[lane])) continue;
            float *mixed = partial.mixed + (region + lane) * query.padded_width;
            const Floats factor = splat(shrink[lane]);
            for (int64_t d = 0; d < query.padded_width; d += LANES) store(mixed + d, floats(mixed + d) * factor);
        }
        Floats total = floats(partial.total + region) * shrink;
        Floats reach = floats(partial.reach + region) * shrink;
        for (int64_t row = 0; row < rows; ++row) {
            float *place = logits + row * kRegionsPadding + part * LANES;
            const Floats weight = exponential(floats(place) - now);
            store(place, weight);
            total += weight;
            reach += weight / bank.inverse_norms[begin + row];
        }
        store(partial.largest + region, now);
        store(partial.total + region, total);
        store(partial.reach + region, reach);
    }
    for (int64_t row = rows; row < kBlock; ++row) std::memset(logits + row * kRegionsPadding, 0, 4 * kRegionsPadding);
}

// The logits (kBlock, 16) of a block of rows (kBlock, padded D) for kRegions directions from `region` of 16 on; sums of
// kRows by kRegions stay in registers.
template <int kRows, int kRegions>
void some_logits(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t rows, int64_t first,
                 int64_t region, const float *block, float *logits) {
    const int64_t width = query.padded_width;
    const float *directions = query.directions + (first + region) * width;
    for (int64_t row = 0; row < rows; row += kRows) {
        Floats sums[kRows][kRegions] = {};
        for (int64_t d = 0; d < width; d += LANES) {
            Floats along[kRegions];
            for (int r = 0; r < kRegions; ++r) along[r] = floats(directions + r * width + d);
            for (int m = 0; m < kRows; ++m) {
                const Floats values = floats(block + (row + m) * width + d);
                for (int r = 0; r < kRegions; ++r) sums[m][r] += values * along[r];
            }
        }
        for (int m = 0; m < kRows; ++m) {
            const float factor = row + m < rows ? bank.inverse_norms[begin + row + m] * query.inverse_temperature : 0;
            for (int r = 0; r < kRegions; ++r) {
                logits[(row + m) * kRegionsPadding + region + r] = sum(sums[m][r]) * factor;
            }
        }
    }
}

void block_logits(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t rows, int64_t first,
                  const float *block, float *logits) {
    constexpr int kRows = LANES == 8 ? 2 : 4, kRegions = 4;  // with 16 registers or 32
    std::memset(logits, 0, sizeof(float) * kBlock * kRegionsPadding);
    const int64_t regions = query.regions - first < kRegionsPadding ? query.regions - first : kRegionsPadding;
    if (regions == 1) return some_logits<8, 1>(bank, query, begin, rows, first, 0, block, logits);
    for (int64_t region = 0; region < regions; region += kRegions) {
        some_logits<kRows, kRegions>(bank, query, begin, rows, first, region, block, logits);
    }
}

// kRegions of mixed (16, padded D) += weights (kBlock, 16) transposed times a block of rows (kBlock, padded D); sums of
// kRegions by kVectors stay in registers.
template <int kRegions, int kVectors>
void add_some(const Query &query, const float *weights, const float *block, float *mixed) {
    const int64_t width = query.padded_width;
    for (int64_t d = 0; d < width; d += kVectors * LANES) {
        Floats sums[kRegions][kVectors];
        for (int r = 0; r < kRegions; ++r) {
            for (int v = 0; v < kVectors; ++v) sums[r][v] = floats(mixed + r * width + d + v * LANES);
        }
        for (int64_t row = 0; row < kBlock; ++row) {
            const float *weight = weights + row * kRegionsPadding;
            const float *values = block + row * width + d;
            for (int r = 0; r < kRegions; ++r) {
                for (int v = 0; v < kVectors; ++v) sums[r][v] += floats(values + v * LANES) * weight[r];
            }
        }
        for (int r = 0; r < kRegions; ++r) {
            for (int v = 0; v < kVectors; ++v) store(mixed + r * width + d + v * LANES, sums[r][v]);
        }
    }
}

void block_add(const Query &query, int64_t first, const float *weights, const float *block, float *mixed) {
    constexpr int kRegions = LANES == 16 ? 8 : 4, kVectors = 2;  // with 16 registers or 32
    if (query.regions - first == 1) return add_some<1, 32 / LANES>(query, weights, block, mixed);
    for (int64_t region = 0; region < kRegionsPadding && first + region < query.regions; region += kRegions) {
        add_some<kRegions, kVectors>(query, weights + region, block, mixed + region * query.padded_width);
    }
}

[[maybe_unused]] int64_t portable_scratch_bytes(const patchcaption_bank &, const Query &query) {
    return 4 * kBlock * (query.padded_width + kRegionsPadding);
}

[[maybe_unused]] void portable_scan(const patchcaption_bank &bank, const Query &query, int64_t begin, int64_t end,
                                    FineRows &fine_rows, Partial &partial, void *scratch) {
    float *unpacked = static_cast<float *>(scratch);
    float *logits = unpacked + kBlock * query.padded_width;
    const bool is_ready =
        bank.storage == PATCHCAPTION_FP32 && !bank.scales && !query.with_fine && bank.width == query.padded_width;
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t rows = end - start < kBlock ? end - start : kBlock;
        const float *block = unpacked;
        if (is_ready && rows == kBlock) {
            block = static_cast<const float *>(bank.rows) + start * bank.width;
        } else {
            const int8_t *fine = fine_rows.block(start, rows);
            for (int64_t row = 0; row < rows; ++row) {
                const int8_t *of_row = fine ? fine + row * bank.width : nullptr;
                unpack(bank, start + row, of_row, query.padded_width, unpacked + row * query.padded_width);
            }
            std::memset(unpacked + rows * query.padded_width, 0, 4 * (kBlock - rows) * query.padded_width);
        }
        for (int64_t first = 0; first < query.regions; first += kRegionsPadding) {
            block_logits(bank, query, start, rows, first, block, logits);
            soften(bank, query, start, rows, first, logits, partial);
            block_add(query, first, logits, block, partial.mixed + first * query.padded_width);
        }
    }
}

void portable_logits(const patchcaption_bank &bank, const Query &query, int64_t region, int64_t count, bool with_fine,
                     float *logits, void *scratch) {
    float *values = static_cast<float *>(scratch);
    const float *direction = query.directions + region * query.padded_width;
    for (int64_t row = 0; row < count; ++row) {
        unpack(bank, row, with_fine ? bank.fine + row * bank.width : nullptr, query.padded_width, values);
        Floats sums{};
        for (int64_t d = 0; d < query.padded_width; d += LANES) sums += floats(values + d) * floats(direction + d);
        logits[row] = sum(sums) * bank.inverse_norms[row] * query.inverse_temperature;
    }
}

void portable_add(const patchcaption_bank &bank, const Query &query, int64_t count, bool with_fine,
                  const float *weights, float *mixed, void *scratch) {
    float *values = static_cast<float *>(scratch);
    for (int64_t row = 0; row < count; ++row) {
        unpack(bank, row, with_fine ? bank.fine + row * bank.width : nullptr, query.padded_width, values);
        const Floats weight = splat(weights[row]);
        for (int64_t d = 0; d < query.padded_width; d += LANES) {
            store(mixed + d, floats(mixed + d) + weight * floats(values + d));
        }
    }
}

}  // namespace
}  // namespace patchcaption
