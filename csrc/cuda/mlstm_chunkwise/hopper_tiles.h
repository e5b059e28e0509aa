#pragma once
// Operands of wgmma that TMA brings: slabs of 128 bytes by some rows, swizzled by 128 bytes.
//
// A slab holds 64 elements of 16 bits of each row. Further columns are further slabs. Where the contracted index runs
// along the rows of a matrix (K-major), 16 of its values are 32 bytes of each row of a slab. Where it runs down the
// rows (MN-major), they are 16 rows.
#include "cuda/device/device.h"

namespace xlstm::cuda {

constexpr int kSlabColumns = 64;
constexpr uint32_t kSlabRow = 128;               // bytes
constexpr uint32_t kSlabBytes = 64 * kSlabRow;   // of 64 rows
constexpr uint32_t kSwizzleRows = 8 * kSlabRow;  // after which the swizzle repeats
constexpr int kSlabSteps = 4;                    // of 16 contracted values

// Step k of 64 contracted values: of any number of rows.
XLSTM_DEVICE uint64_t k_major(uint32_t slab, int k) {
  return device::wgmma_descriptor(slab + k * 32, 16, kSwizzleRows, device::Swizzle::bytes_128);
}

// Of slabs that have 64 rows each.
XLSTM_DEVICE uint64_t mn_major(uint32_t slab, int k) {
  return device::wgmma_descriptor(slab + k * 16 * kSlabRow, kSlabBytes, kSwizzleRows, device::Swizzle::bytes_128);
}

// The row of 8 elements that a lane gives to ldmatrix for the A fragment of 16 rows from `row` on.
XLSTM_DEVICE uint32_t fragment_row(uint32_t slab, int row, int k) {
  const int lane = threadIdx.x % 32, at = row + lane % 16, chunk = 2 * k + lane / 16;
  return slab + at * kSlabRow + ((chunk ^ (at & 7)) << 4);
}

// The same, for an A fragment of 16 columns of the slab from `column` on: rows are the contracted index, 16 of them
// from `row` on.
XLSTM_DEVICE uint32_t transposed_fragment_row(uint32_t slab, int row, int column) {
  const int lane = threadIdx.x % 32, at = row + lane % 8 + lane / 16 * 8, chunk = column / 8 + lane / 8 % 2;
  return slab + at * kSlabRow + ((chunk ^ (at & 7)) << 4);
}

// Where 8 elements of a row are, from `column` on, a multiple of 8.
XLSTM_DEVICE uint32_t piece_of_row(uint32_t slab, int row, int column) {
  return slab + row * kSlabRow + ((column / 8 ^ (row & 7)) << 4);
}

// A ring of stages in shared memory that one thread fills by TMA and warps empty. `full` and `empty` are mbarriers, one
// of each per stage.
class Ring {
 public:
  XLSTM_DEVICE Ring(uint32_t memory, uint32_t full, uint32_t empty, int stages, uint32_t stage_bytes)
      : memory_(memory), full_(full), empty_(empty), stages_(stages), bytes_(stage_bytes) {}

  XLSTM_DEVICE int stage() const { return stage_; }
  XLSTM_DEVICE uint32_t full() const { return full_ + stage_ * 8; }
  XLSTM_DEVICE uint32_t empty() const { return empty_ + stage_ * 8; }
  XLSTM_DEVICE uint32_t memory() const { return memory_ + stage_ * bytes_; }

  // Until the stage can be filled: a new mbarrier counts as one whose phase before the first is complete.
  XLSTM_DEVICE void await_empty(device::Source where = device::Source::here()) const {
    device::mbarrier_wait(empty(), parity_ ^ 1, {"a stage to be emptied"}, where);
  }
  XLSTM_DEVICE void await_full(device::Source where = device::Source::here()) const {
    device::mbarrier_wait(full(), parity_, {"a stage to be filled"}, where);
  }
  // By all lanes of a warp that has read it: a lane that still waited for it could miss its phase.
  XLSTM_DEVICE void release() const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) device::mbarrier_arrive(empty());
  }
  XLSTM_DEVICE void advance() {
    if (++stage_ < stages_) return;
    stage_ = 0;
    parity_ ^= 1;
  }
  // The stage of what is sent or read as the n-th.
  XLSTM_DEVICE Ring at(int n) const {
    Ring ring = *this;
    ring.stage_ = n % stages_, ring.parity_ = n / stages_ % 2;
    return ring;
  }

 private:
  uint32_t memory_, full_, empty_;
  int stages_, stage_ = 0;
  uint32_t bytes_, parity_ = 0;
};

}  // namespace xlstm::cuda
