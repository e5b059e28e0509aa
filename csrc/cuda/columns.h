#pragma once
// Grids whose threads have a few neighbouring features each of one row: a run of tokens, or what else there is.
#include "cuda/device/device.h"

namespace xlstm::cuda {

constexpr int kColumnThreads = 128;  // at most

struct ColumnPlace {
  int64_t row, feature;
};

// Divisions have 32 bits: others are calls.
XLSTM_DEVICE ColumnPlace column_place(unsigned across, int count) {
  const unsigned row = blockIdx.x / across, part = blockIdx.x - row * across;
  return {row, (int64_t{part} * blockDim.x + threadIdx.x) * count};
}

// `across` blocks for each row, whose threads own `count` features each.
struct ColumnLaunch {
  device::Launch launch;
  unsigned across;
  cudaError_t refused = cudaSuccess;
};

inline ColumnLaunch column_launch(const char* name, int64_t rows, int64_t features, int count, cudaStream_t stream) {
  const int64_t threads = (features + count - 1) / count, warps = (threads + 31) / 32;
  const int64_t block = warps * 32 < kColumnThreads ? warps * 32 : kColumnThreads;
  const int64_t across = (threads + block - 1) / block;
  ColumnLaunch l{};
  if (across > device::kMaxGridX || rows > device::kMaxGridX / across) l.refused = cudaErrorInvalidConfiguration;
  l.across = static_cast<unsigned>(across);
  l.launch.grid = dim3(static_cast<unsigned>(l.refused ? 0 : rows * across));
  l.launch.block = dim3(static_cast<unsigned>(block));
  l.launch.name = name;
  l.launch.stream = stream;
  return l;
}

}  // namespace xlstm::cuda
