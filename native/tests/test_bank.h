// Banks for native tests, of whole numbers that every storage holds exactly.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fail.h"
#include "patchcaption/projection.h"

struct Bank {
    std::vector<uint8_t> rows;
    std::vector<float> scales, residual_scales, inverse_norms;
    std::vector<int8_t> residual;
    patchcaption_bank bank{};
};

// Appends a whole number from -127 to 127 to `rows` as it is stored.
inline void append_stored(float value, int32_t storage, std::vector<uint8_t> &rows) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t bf16 = static_cast<uint16_t>(bits >> 16);
    // A float16 has a bias of 15 where a float32 has 127; zero is all zeros in both.
    const uint32_t exponent = (bits >> 23 & 0xff) - 112;
    const uint16_t fp16 =
        value == 0 ? 0 : static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
    const int8_t int8 = static_cast<int8_t>(value);
    const void *source = storage == PATCHCAPTION_FP32   ? static_cast<const void *>(&value)
                         : storage == PATCHCAPTION_FP16 ? static_cast<const void *>(&fp16)
                         : storage == PATCHCAPTION_BF16 ? static_cast<const void *>(&bf16)
                                                        : static_cast<const void *>(&int8);
    const int64_t bytes = storage == PATCHCAPTION_FP32 ? 4 : storage == PATCHCAPTION_INT8 ? 1 : 2;
    const uint8_t *first = static_cast<const uint8_t *>(source);
    rows.insert(rows.end(), first, first + bytes);
}

// Sets the bank's sizes, and its pointers to the arrays that are not empty.
inline void describe_bank(Bank &made, int64_t row_count, int64_t width, int32_t storage, int residual_fd) {
    made.bank.rows = made.rows.data();
    made.bank.scales = made.scales.empty() ? nullptr : made.scales.data();
    made.bank.residual = made.residual.empty() || residual_fd >= 0 ? nullptr : made.residual.data();
    made.bank.residual_scales = made.residual.empty() ? nullptr : made.residual_scales.data();
    made.bank.inverse_norms = made.inverse_norms.data();
    made.bank.row_count = row_count;
    made.bank.width = width;
    made.bank.storage = storage;
    made.bank.residual_fd = residual_fd;
}
