// AVX-512 with VNNI: Xeon since 2019, AMD since Zen 4.
#include "cpu_avx512.h"
#include "int8_avx512.h"

namespace patchcaption {
const Variant kAvx512Vnni = {"avx512vnni", 0, has_avx512_vnni, int8_scratch_bytes, int8_scan, simd_refine};
}  // namespace patchcaption
