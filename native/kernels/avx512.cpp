// AVX-512 with BW, VL and DQ: x86 servers since 2017.
#include "cpu_avx512.h"
#include "simd_avx512.h"

namespace patchcaption {
const Variant kAvx512 = {"avx512", 0, has_avx512, simd_scratch_bytes, simd_scan, simd_refine};
}  // namespace patchcaption
