#include "ops/backends/cpu.h"

#include <cstdlib>

namespace xlstm::ops {
namespace {

// Scratch memory of one thread, kept between calls up to a limit: fresh pages cost more than small kernels.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  void* get(size_t bytes) {
    if (bytes > size_ || (size_ > kKept && bytes <= kKept)) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
      if (data_ == nullptr) out_of_memory(true, static_cast<double>(bytes), "scratch");
      size_ = bytes;
    }
    return data_;
  }

 private:
  static constexpr size_t kKept = size_t{64} << 20;
  void* data_ = nullptr;
  size_t size_ = 0;
};

void* thread_scratch(int slot, size_t bytes) {
  static thread_local Scratch slots[2];
  return slots[slot].get(bytes);
}

void run(int64_t count, int64_t grain, const void* context, Runtime::Body body) {
  if (count <= grain || torch::stable::get_num_threads() == 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace

const Runtime& cpu_runtime() {
  static const Runtime runtime = {run, thread_scratch,
                                  [] { return static_cast<int>(torch::stable::get_num_threads()); }};
  return runtime;
}

}  // namespace xlstm::ops
