// What the kernels on Intel AMX share: whether there are tiles, their configuration, and how bfloat16 is packed for
// them. Everything is local to the including file: the linker must not merge functions of different instruction sets.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "cpu_avx512.h"
#include "scratch.h"

namespace patchcaption {
namespace {

constexpr int64_t kTileRows = 16;   // a tile holds 16 x 32 bfloat16, 16 x 64 int8, or 16 x 16 float32 or int32
constexpr int64_t kTileDepth = 32;  // bfloat16 elements that one tile product sums over
constexpr int64_t kTileBytes = 1024;

// Whether the CPU multiplies tiles of bfloat16 and int8, and the system lets this process use them.
inline bool has_amx() {
    // Linux enables the tile registers for a process on request only.
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = [] {
        unsigned a, b, c, d;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        const bool has_tiles = (d >> 24 & 1) && (d >> 22 & 1) && (d >> 25 & 1);  // AMX-TILE, AMX-BF16, AMX-INT8
        return has_tiles && has_avx512() && __builtin_cpu_supports("avx512bf16") &&
               __builtin_cpu_supports("avx512vbmi") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return granted;
}

// The operand of LDTILECFG: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures the tile registers of its thread, and puts the configuration of before back: another library of the
// process may rely on what it configured itself.
class TileScope {
  public:
    TileScope() {
        __asm__ volatile("sttilecfg %0" : "=m"(before_));
        load(TileConfig());
    }
    TileScope(const TileScope &) = delete;
    TileScope &operator=(const TileScope &) = delete;
    ~TileScope() {
        if (before_.palette) load(before_);
        else _tile_release();
    }

  private:
    // GCC's intrinsics name 8 of the 64 bytes as their operand: it may leave out what writes the others.
    static void load(const TileConfig &config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }

    TileConfig before_;
};

// Transposes a 16 x 16 matrix of words.
inline void transpose(__m512i words[16]) {
    __m512i half[16];
    for (int i = 0; i < 16; i += 2) {
        half[i] = _mm512_unpacklo_epi32(words[i], words[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(words[i], words[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        words[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
        words[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
        words[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
        words[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        half[i] = _mm512_shuffle_i32x4(words[i], words[i + 4], 0x88);
        half[i + 4] = _mm512_shuffle_i32x4(words[i], words[i + 4], 0xdd);
        half[i + 8] = _mm512_shuffle_i32x4(words[i + 8], words[i + 12], 0x88);
        half[i + 12] = _mm512_shuffle_i32x4(words[i + 8], words[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        words[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        words[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    }
}

}  // namespace
}  // namespace patchcaption
