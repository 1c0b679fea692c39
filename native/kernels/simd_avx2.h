// simd_scan.h for AVX2, as avx2.cpp and avxvnni.cpp use it: 8 lanes, and its load instructions.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {
inline __m256 load_fp16_avx2(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
inline __m256 load_int8_avx2(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
}
inline bool any_lane_avx2(__m256i lanes) { return !_mm256_testz_si256(lanes, lanes); }
inline float sum_lanes_avx2(__m256 values) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
}  // namespace
#define LANES 8
#define ANY_LANE(lanes) any_lane_avx2((__m256i)(lanes))
#define SUM_LANES sum_lanes_avx2
#define LOAD_FP16 load_fp16_avx2
#define LOAD_INT8 load_int8_avx2
#include "simd_scan.h"
