// What every machine of its kind has: SSE2 on x86, NEON on 64-bit Arm.
#include <cstdint>
#define LANES 4
#if defined(__aarch64__)
#include <arm_neon.h>
namespace {
typedef float HalvesAsFloats __attribute__((vector_size(16)));
inline HalvesAsFloats halves_to_floats(const uint16_t *from) {
    return (HalvesAsFloats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
}  // namespace
#define HALVES_TO_FLOATS halves_to_floats
#endif
#include "simd_scan.h"

namespace patchcaption {
namespace {
bool always() { return true; }
}  // namespace
#if defined(__aarch64__)
const Variant kBaseline = {"neon", 0, always, portable_scratch_bytes, portable_scan, portable_logits, portable_add};
#else
const Variant kBaseline = {"baseline", 0, always, portable_scratch_bytes, portable_scan, portable_logits, portable_add};
#endif
}  // namespace patchcaption
