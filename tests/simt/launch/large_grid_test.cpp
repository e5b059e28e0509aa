// More blocks than a grid has, which no test could have the memory for: launchers refuse before they ask for memory,
// launch anything or change a state.
#include <cstdio>
#include <stdexcept>

#include "cuda/device/launch.h"
#include "cuda/launchers.h"

namespace {

using namespace xlstm;

const cuda::Allocator kNoMemory = {[](void*, size_t) -> void* { throw std::runtime_error("asked for memory"); },
                                   nullptr};

// Whether it is refused, and whatever it did.
template <class Params>
bool refuses(const char* what, const Params& params) {
  const uint64_t before = simt::stats().launches;
  try {
    const cudaError_t error = cuda::run(params, kNoMemory, nullptr);
    if (error == cudaErrorInvalidConfiguration && simt::stats().launches == before) return true;
    std::printf("%s: error %d, %d launches\n", what, error, static_cast<int>(simt::stats().launches - before));
  } catch (const std::exception& e) {
    std::printf("%s: %s\n", what, e.what());
  }
  return false;
}

// A block for each batch row, head and tile of columns. The narrowest tile has 16 columns.
bool mlstm_step(Type type, int64_t tokens, int64_t batch, int64_t columns) {
  MlstmStepParams<void> p{};
  p.shape = {batch, 2, tokens, 64, columns};
  p.q.type = p.k.type = p.v.type = p.state.C.type = p.next.C.type = type;
  return refuses("mlstm_step", p);
}

bool recurrent_step(Type type, int64_t batch, int64_t head_dim) {
  RecurrentStepParams<void> p{};
  p.shape = {batch, 1, 3, head_dim};
  p.type = type;
  return refuses("recurrent_step", p);
}

}  // namespace

int main() {
  constexpr int64_t kMost = device::kMaxGridX;
  bool good = true;
  for (Type type : {Type::bf16, Type::f32, Type::f64}) {
    for (int64_t tokens : {1, 16}) {
      good &= mlstm_step(type, tokens, kMost / 2 + 1, 1);
      good &= mlstm_step(type, tokens, kMost / 64, 64 * 64);  // each row alone would fit
    }
  }
  for (Type type : {Type::bf16, Type::f16, Type::f32, Type::f64}) good &= recurrent_step(type, kMost, 4096);
  return good ? 0 : 1;
}
