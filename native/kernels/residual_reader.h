// Reads residuals of rows from memory or from their file.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <stdexcept>

#include "scan_interface.h"
#include "support.h"

namespace patchcaption {

constexpr int64_t kResidualRows = 256;  // read from the file at a time: they stay in the second-level cache

// The file is not mapped: if another process shortens it, reading is an error, where touching a mapping would be the
// end of this process.
class ResidualReader : public ResidualSource {
  public:
    explicit ResidualReader(const patchcaption_bank &bank, bool is_enabled = true)
        : bank_(bank), is_enabled_(is_enabled) {}
    ResidualReader(const ResidualReader &) = delete;
    ResidualReader(ResidualReader &&) noexcept = default;

    const int8_t *block(int64_t start, int64_t rows) override {
        if (!is_enabled_) return nullptr;
        if (bank_.residual) return bank_.residual + start * bank_.width;
        if (start < first_ || start + rows > last_) read_around(start, rows);
        return rows_.get() + (start - first_) * bank_.width;
    }

    // Reads some rows, one after another, from the file.
    void read(int64_t start, int64_t rows, int8_t *out) const {
        const int64_t offset = bank_.residual_offset + start * bank_.width, bytes = rows * bank_.width;
        for (int64_t done = 0; done < bytes;) {
            const ssize_t count = pread(bank_.residual_fd, out + done, bytes - done, offset + done);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) throw std::runtime_error("the residual's file is truncated or cannot be read");
            done += count;
        }
    }

  private:
    // Reads at least the rows asked for: groups of queries ask for the same ones, one after another.
    void read_around(int64_t start, int64_t rows) {
        const int64_t first = start / kResidualRows * kResidualRows;
        const int64_t end = std::min(bank_.row_count, std::max(first + kResidualRows, start + rows));
        if (end - first > capacity_) {
            rows_ = allocate<int8_t>((end - first) * bank_.width);
            capacity_ = end - first;
        }
        first_ = last_ = 0;  // of nothing, should reading fail
        read(first, end - first, rows_.get());
        first_ = first;
        last_ = end;
    }

    const patchcaption_bank &bank_;
    bool is_enabled_;
    AlignedArray<int8_t> rows_;
    int64_t capacity_ = 0, first_ = 0, last_ = 0;
};

}  // namespace patchcaption
