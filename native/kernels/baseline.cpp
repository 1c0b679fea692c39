// What every CPU of the architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#include <cstdint>
#if defined(__aarch64__)
#include <arm_neon.h>
namespace {
typedef float FourFloats __attribute__((vector_size(16)));
inline FourFloats load_fp16_neon(const uint16_t *from) {
    return (FourFloats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
}  // namespace
#define LOAD_FP16 load_fp16_neon
#endif
#define LANES 4
#include "simd_scan.h"

namespace patchcaption {
namespace {
bool is_supported() { return true; }
#if defined(__aarch64__)
constexpr char kName[] = "neon";
#else
constexpr char kName[] = "baseline";
#endif
}  // namespace
const Variant kBaseline = {kName, 0, is_supported, simd_scratch_bytes, simd_scan, simd_logits, simd_accumulate};
}  // namespace patchcaption
