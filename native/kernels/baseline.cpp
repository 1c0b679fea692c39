// What every CPU of the architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#if defined(__aarch64__)
#include "simd_neon.h"
#else
#define LANES 4
#include "simd_scan.h"
#endif

namespace patchcaption {
namespace {
bool is_supported() { return true; }
#if defined(__aarch64__)
constexpr char kName[] = "neon";
#else
constexpr char kName[] = "baseline";
#endif
}  // namespace
const Variant kBaseline = {kName, 0, is_supported, simd_scratch_bytes, simd_scan, simd_refine};
}  // namespace patchcaption
