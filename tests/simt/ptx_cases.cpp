// Runs the kernels of tests/support/ptx, one a case, on arrays of its caller: a library for
// tests/kernels/test_ptx_cases.py.
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "simt/executor.h"
#include "simt/ptx/registry.h"

namespace {

struct Array {
  void* data;
  uint64_t bytes;
};
constexpr int kInputs = 4;
constexpr unsigned kThreads = 128;
constexpr size_t kSharedBytes = kThreads * 16;

void run(const char* name, unsigned elements, const Array* inputs, const Array& result) {
  const auto lock = simt::hold();
  std::vector<void*> pointers;
  for (int i = 0; i < kInputs; ++i) {
    pointers.push_back(simt::allocate(inputs[i].bytes));
    if (inputs[i].bytes) std::memcpy(pointers.back(), inputs[i].data, inputs[i].bytes);
    simt::mark_written(pointers.back(), inputs[i].bytes);
  }
  pointers.push_back(simt::allocate(result.bytes));
  std::vector<simt::KernelArgument> arguments;
  for (void*& pointer : pointers) arguments.push_back({&pointer, sizeof pointer});
  const simt::LaunchConfig config{
      .grid = dim3(elements / kThreads), .block = dim3(kThreads), .shared_bytes = kSharedBytes, .name = name};
  simt::run(config, ptx::bound(ptx::find(name), arguments));
  std::memcpy(result.data, pointers.back(), result.bytes);
}

}  // namespace

// The number of elements is one of whole blocks. Returns 0, or 1 with a message.
extern "C" __attribute__((visibility("default"))) int run_case(const char* name, unsigned elements, int adversary,
                                                               const Array* inputs, const Array* result, char* message,
                                                               size_t bytes) {
  int failed = 0;
  simt::options().adversary = adversary;
  try {
    run(name, elements, inputs, *result);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), bytes - 1);
    failed = 1;
  }
  simt::release_all();
  return failed;
}
