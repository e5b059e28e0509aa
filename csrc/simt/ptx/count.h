#pragma once
// What the warps of a launch execute (simt::options().counting): instructions by class, and what their accesses of
// memory cost. A profile without a chip: numbers of instructions and transactions, no times.
#include <string>
#include <vector>

#include "simt/ptx/types.h"

namespace ptx {

// So many instructions of a class in a basic block of a kernel.
struct BlockClass {
  u32 block;
  const char* name;
  u32 instructions;
};
struct Profile {
  const char* kernel;  // as its PTX names it
  u32 blocks;
  const BlockClass* classes;
  size_t class_count;
};

enum class Traffic {
  load_global,
  store_global,
  load_shared,
  store_shared,
  load_matrix,
  store_matrix,
  copy_async,
  atomic,
  load_box
};

// Counts for the running thread while it exists.
class Counting {
 public:
  explicit Counting(const Profile&);
  ~Counting();
  Counting(const Counting&) = delete;
  void block(u32 number) {
    if (counts_) [[unlikely]]
      count(number);
  }

 private:
  bool counts_ = false;
  static void count(u32 block);
};

inline bool counting() {
  return simt::options().counting;
}
// An access by the running thread. Accesses of the lanes of a warp at the same place, each lane's n-th, are one
// request.
void count_access(Traffic, const void* place, size_t bytes, At where);

// Of all launches since the counters were cleared, as JSON: an object for each kernel. Of the last blocks of a launch
// also the courses of their warps: the basic blocks one after the other, as the first lane passed them.
std::string counters();
void clear_counters();

}  // namespace ptx
