#pragma once
// Global memory of a test, on the device or in the executor, filled from and read back to the host.
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device/device.h"

namespace selftest {

inline void check(cudaError_t error) {
#if XLSTM_SIMT
  if (error != cudaSuccess) {
    throw std::runtime_error("refused: error " + std::to_string(static_cast<int>(error)) + ", seed " +
                             std::to_string(simt::options().seed));
  }
#else
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
#endif
}

#if XLSTM_SIMT
inline void* allocate(size_t bytes) {
  return simt::allocate(bytes);
}
inline void release(void* pointer) {
  simt::release(pointer);
}
inline void upload(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  simt::mark_written(to, bytes);
}
inline void download(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}
inline void synchronise() {}
#else
inline void* allocate(size_t bytes) {
  void* pointer = nullptr;
  check(cudaMalloc(&pointer, bytes));
  check(cudaMemset(pointer, 0xFF, bytes));
  return pointer;
}
inline void release(void* pointer) {
  cudaFree(pointer);
}
inline void upload(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
inline void download(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
inline void synchronise() {
  check(cudaDeviceSynchronize());
}
#endif

// Never written: NaN, and the race build reports reads of it.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size), data_(static_cast<T*>(allocate(size * sizeof(T)))) {}
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    upload(data_, values.data(), size_ * sizeof(T));
  }
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  size_t size() const { return size_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    download(static_cast<void*>(values.data()), data_, size_ * sizeof(T));
    return values;
  }
  std::vector<float> read_floats() const {
    std::vector<float> floats;
    for (const T& value : read()) floats.push_back(static_cast<float>(value));
    return floats;
  }

 private:
  size_t size_;
  T* data_;
};

// ---- inputs: the same in every run and on every machine ----
class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed) {}
  uint32_t bits() { return (state_ = state_ * 1664525u + 1013904223u) >> 8; }
  // in [-1, 1)
  float uniform() { return static_cast<float>(bits() & 0xffff) / 32768.f - 1.f; }
  // Small integers: products and sums of them are exact in any order.
  float integer() { return static_cast<float>(static_cast<int>(bits() % 17) - 8); }

 private:
  uint32_t state_;
};

template <class T = float>
std::vector<T> uniform(size_t size, uint32_t seed, float scale = 1.f) {
  Random random(seed);
  std::vector<T> values(size);
  for (T& value : values) value = static_cast<T>(random.uniform() * scale);
  return values;
}

template <class T = float>
std::vector<T> integers(size_t size, uint32_t seed) {
  Random random(seed);
  std::vector<T> values(size);
  for (T& value : values) value = static_cast<T>(random.integer());
  return values;
}

// A tensor map of a row-major matrix with boxes of `box_rows` x `box_columns`.
template <class T>
CUtensorMap matrix_map(Buffer<T>& buffer, uint64_t rows, uint64_t columns, uint32_t box_rows, uint32_t box_columns,
                       CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  CUtensorMap map;
  const xlstm::device::TensorMapShape<2> shape{{columns, rows}, {columns}, {box_columns, box_rows}};
  if (xlstm::device::make_tensor_map(&map, buffer.data(), shape, swizzle) != CUDA_SUCCESS) {
    throw std::runtime_error("no tensor map");
  }
  return map;
}

}  // namespace selftest
