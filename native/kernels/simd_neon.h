// simd_scan.h for 64-bit Arm: 4 lanes, and the instructions that NEON has for them.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace {
typedef float FourFloats __attribute__((vector_size(16)));
inline FourFloats load_fp16_neon(const uint16_t *from) {
    return (FourFloats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
}  // namespace

#define LANES 4
#define LOAD_FP16 load_fp16_neon
#define ANY_LANE(lanes) (vmaxvq_u32((uint32x4_t)(lanes)) != 0)
#define SUM_LANES(values) vaddvq_f32((float32x4_t)(values))
#include "simd_scan.h"
