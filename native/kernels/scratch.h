// Scratch memory of a thread, for files of any instruction set. Everything is local to the including file: the linker
// must not merge functions of different instruction sets.
#pragma once

#include <cstdint>

namespace patchcaption {
namespace {

// support.h's is for files of the oldest instruction set.
inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Hands out the scratch memory of a thread, one array after another.
class ScratchPartition {
  public:
    explicit ScratchPartition(void *memory) : memory_(static_cast<char *>(memory)), next_(memory_) {}

    template <typename Item>
    void take(Item *&array, int64_t count) {
        array = reinterpret_cast<Item *>(next_);
        next_ += count * static_cast<int64_t>(sizeof(Item));
    }

    int64_t bytes() const { return next_ - memory_; }

  private:
    char *memory_, *next_;
};

}  // namespace
}  // namespace patchcaption
