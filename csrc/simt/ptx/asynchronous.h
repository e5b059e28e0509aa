#pragma once
// Asynchronous copies and mbarriers (PTX ISA 9.7.9.25, 9.7.13.15), by the executor's.
#include "simt/ptx/memory.h"
#include "simt/tensor_map.h"

namespace ptx {

inline void copy_async(u32 to, u64 from, int bytes, int read, At where) {
  if (read) global_at(from, bytes, where);
  if (read && counting()) [[unlikely]]
    count_access(Traffic::copy_async, pointer(from), read, where);
  simt::cp_async(to, pointer(from), bytes, read, where);
}

inline const CUtensorMap* tensor_map(u64 address) {
  return reinterpret_cast<const CUtensorMap*>(address);
}

// What TMA reads of a tensor, in whole rows of the box.
inline void count_box(int dims, const CUtensorMap* map, const int* box, At where) {
  if (!counting()) [[likely]]
    return;
  simt::TensorMap plain = simt::decode(map, dims, where);
  plain.swizzle_bits = 0;  // which cuts rows into pieces
  simt::for_each_piece(plain, box, 0, [&](const uint8_t* row, uint32_t, uint32_t bytes) {
    if (row) count_access(Traffic::load_box, row, bytes, where);
  });
}

// .shared::cta takes the block's own memory only.
inline u32 own_mbarrier(const Shared& S, u32 address, At where) {
  if (address - S.own >= S.bytes) {
    simt::fault(where, "shared::cta: 0x%x is not in this block's shared memory", address);
  }
  return address;
}

inline bool mbarrier_test_wait(u32 address, u32 parity, simt::Scope scope, At where) {
  return simt::mbarrier_test(address, parity, scope, where);
}
// Suspends the thread until the phase is complete, or until a time limit of the hardware's: it is false now and then.
inline bool mbarrier_try_wait(u32 address, u32 parity, simt::Scope scope, At where) {
  if (simt::machine.random.below(4) == 0) {
    simt::check_live(where);
    return false;
  }
  simt::mbarrier_wait(address, parity, scope, where);
  return true;
}

}  // namespace ptx
