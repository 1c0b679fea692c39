// What a CPU has of AVX-512. Everything is local to the including file, as in scratch.h.
#pragma once

namespace patchcaption {
namespace {

inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

inline bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

inline bool has_avx512_vnni_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace
}  // namespace patchcaption
