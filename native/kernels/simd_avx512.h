// The AVX-512 settings of simd_scan.h, shared by avx512.cpp and amx.cpp: 16 lanes, and single-instruction conversions.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {
inline __m512 halves_to_floats(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
inline __m512 bytes_to_floats(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}
}  // namespace

#define LANES 16
#define HALVES_TO_FLOATS halves_to_floats
#define BYTES_TO_FLOATS bytes_to_floats
#include "simd_scan.h"
