// simd_scan.h for AVX-512, as avx512.cpp and amx.cpp use it: 16 lanes, and its load instructions.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {
inline __m512 load_fp16_avx512(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
inline __m512 load_int8_avx512(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}
inline bool any_lane_avx512(__m512i lanes) { return _mm512_test_epi32_mask(lanes, lanes) != 0; }
inline float sum_lanes_avx512(__m512 values) { return _mm512_reduce_add_ps(values); }
}  // namespace

#define LANES 16
#define ANY_LANE(lanes) any_lane_avx512((__m512i)(lanes))
#define SUM_LANES sum_lanes_avx512
#define LOAD_FP16 load_fp16_avx512
#define LOAD_INT8 load_int8_avx512
#include "simd_scan.h"
