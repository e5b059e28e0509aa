// csrc/cuda/device/launch.cu and csrc/ops/backends/cuda_device.cpp with a CUDA runtime that refuses: launch_test --list
// names the cases, launch_test CASE runs one.
#include "cuda/device/launch.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "fake_runtime.h"
#include "ops/backends/cuda_device.h"

namespace {

using namespace xlstm;
using device::Launch;
using fake::runtime;

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}
#define REQUIRE(condition) require(condition, #condition)

template <int>
__global__ void add(int* to, int x) {
  *to += x;
}

constexpr size_t kKilo = 1024;

Launch with_shared(size_t bytes) {
  Launch l;
  l.name = "add";
  l.shared_bytes = bytes;
  return l;
}

Launch in_clusters(unsigned blocks) {
  Launch l = with_shared(100 * kKilo);
  l.grid = dim3(64);
  l.cluster = blocks;
  return l;
}

Launch of_whole_grid(unsigned blocks) {
  Launch l = with_shared(0);
  l.grid = dim3(blocks);
  l.cooperative = true;
  return l;
}

bool says(const std::string& text) {
  return cuda::refusal().find(text) != std::string::npos;
}

void launches(const Launch& l) {
  int sum = 1;
  REQUIRE(device::launch(l, add<0>, &sum, 4) == cudaSuccess);
  REQUIRE(sum == 5);
  REQUIRE(runtime().last == cudaSuccess);
}

// With a reason that has these words; nothing runs, and no error is left behind.
void refuses(const Launch& l, std::vector<std::string> reason) {
  int sum = 1;
  cuda::refusal() = "stale";
  REQUIRE(device::launch(l, add<0>, &sum, 4) == cudaErrorLaunchOutOfResources);
  reason.push_back("kernel 'add'");
  for (const std::string& words : reason) {
    if (!says(words)) throw std::runtime_error("not '" + words + "', but: " + cuda::refusal());
  }
  REQUIRE(sum == 1);
  REQUIRE(runtime().last == cudaSuccess);
}

void fails(const Launch& l, cudaError_t error) {
  int sum = 1;
  REQUIRE(device::launch(l, add<0>, &sum, 4) == error);
  REQUIRE(sum == 1);
  REQUIRE(runtime().last == cudaSuccess);
}

// ---- limits of a kernel ----

// After the limits of the kernel are set, before this thread launches it.
void another_thread_needs_less() {
  const auto other = [] { std::thread([] { launches(with_shared(60 * kKilo)); }).join(); };
  runtime().meanwhile["cudaOccupancyMaxActiveClusters"] = other;
  launches(in_clusters(2));
  runtime().meanwhile["cudaLaunchKernelExC"] = other;
  launches(with_shared(200 * kKilo));
}

void another_thread_is_first() {
  runtime().meanwhile["set shared bytes"] = [] { std::thread([] { launches(with_shared(60 * kKilo)); }).join(); };
  launches(with_shared(200 * kKilo));
}

void many_threads() {
  std::vector<std::thread> threads;
  std::vector<int> sums(8);
  for (size_t t = 0; t < sums.size(); ++t) {
    threads.emplace_back([&sums, t] {
      for (size_t i = 0; i < 100; ++i) {
        const size_t bytes = (50 + (i * 37 + t * 11) % 170) * kKilo;
        if (device::launch(with_shared(bytes), add<0>, &sums[t], 1) != cudaSuccess) return;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int sum : sums) REQUIRE(sum == 100);
}

void once_for_each_kernel_and_device() {
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    for (int device : {0, 1}) {
      cudaSetDevice(device);
      REQUIRE(device::launch(with_shared(200 * kKilo), add<0>, &sum, 1) == cudaSuccess);
      REQUIRE(device::launch(with_shared(100 * kKilo), add<1>, &sum, 1) == cudaSuccess);
    }
  }
  REQUIRE(sum == 12);
  REQUIRE(runtime().calls["set shared bytes"] == 4);
  REQUIRE(runtime().calls["cudaFuncGetAttributes"] == 4);
}

void static_shared_memory() {
  runtime().static_shared_bytes = 3000;
  launches(with_shared(200 * kKilo));
}

void again_after_an_error() {
  runtime().errors["set shared bytes"] = cudaErrorUnknown;
  fails(with_shared(200 * kKilo), cudaErrorUnknown);
  runtime().errors.clear();
  launches(with_shared(200 * kKilo));
}

// ---- refusals ----

void too_much_shared_memory() {
  refuses(with_shared(300000), {"300000", "232448", "shared memory"});
  REQUIRE(runtime().calls["cudaLaunchKernelExC"] == 0);
}

void large_clusters_are_not_allowed() {
  runtime().allows_large_clusters = false;
  launches(in_clusters(8));
  refuses(in_clusters(16), {"clusters of 16 blocks", "102400 bytes", "some error"});
  REQUIRE(runtime().calls["cudaLaunchKernelExC"] == 1);
}

void large_clusters() {
  launches(in_clusters(16));
}

void no_room_for_clusters() {
  runtime().clusters = 0;
  refuses(in_clusters(4), {"clusters of 4 blocks"});
  REQUIRE(runtime().calls["cudaLaunchKernelExC"] == 0);
}

// As with TORCH_CUDA_ARCH_LIST="8.0+PTX" on a device of 9.0: the driver compiles a kernel that has no body.
void compiled_for_a_capability_without_clusters() {
  runtime().ptx_version = 80;
  for (int round = 0; round < 2; ++round) refuses(in_clusters(2), {"clusters", "compute capability 8.0"});
  launches(with_shared(60 * kKilo));
}

void compiled_for_a_capability() {
  REQUIRE(device::compiled_for(add<0>) == 90);
  runtime().errors["cudaFuncGetAttributes"] = cudaErrorInvalidDeviceFunction;
  REQUIRE(device::compiled_for(add<1>) == 0);
}

void no_room_for_the_grid() {
  launches(of_whole_grid(132));
  refuses(of_whole_grid(133), {"133 blocks at once", "132"});
  runtime().errors["cudaOccupancyMaxActiveBlocksPerMultiprocessor"] = cudaErrorNotSupported;
  refuses(of_whole_grid(132), {"132 blocks at once", "not supported here"});
  REQUIRE(runtime().calls["cudaLaunchKernelExC"] == 1);
}

void refused_by_the_launch() {
  for (cudaError_t error : {cudaErrorLaunchOutOfResources, cudaErrorCooperativeLaunchTooLarge, cudaErrorNotSupported,
                            cudaErrorInvalidClusterSize}) {
    runtime().errors["cudaLaunchKernelExC"] = error;
    refuses(with_shared(0), {cudaGetErrorString(error)});
  }
}

// ---- errors ----

void errors_are_what_they_are() {
  for (const char* function : {"cudaGetDevice", "cudaDeviceGetAttribute", "cudaFuncGetAttributes", "set shared bytes",
                               "cudaLaunchKernelExC"}) {
    runtime().errors = {{function, cudaErrorIllegalAddress}};
    fails(with_shared(200 * kKilo), cudaErrorIllegalAddress);
  }
}

void device_cannot_be_asked() {
  REQUIRE(device::device_properties().compute_capability == 90 && device::device_properties().max_cluster == 16);
  REQUIRE(device::max_shared_bytes() == 232448);
  for (const char* function : {"cudaGetDevice", "cudaDeviceGetAttribute"}) {
    runtime().errors = {{function, cudaErrorInsufficientDriver}};
    REQUIRE(device::device_properties().compute_capability == 0 && device::device_properties().multiprocessors == 0);
    REQUIRE(device::max_shared_bytes() == 0);
    REQUIRE(runtime().last == cudaSuccess);
  }
}

// ---- CUDA graphs ----

void first_launch_in_a_capture() {
  runtime().capturing = true;
  launches(in_clusters(16));
  launches(of_whole_grid(132));
  REQUIRE(!runtime().capture_is_over);
  REQUIRE(fake::mode_of_thread() == cudaStreamCaptureModeGlobal);
}

void refusals_do_not_end_a_capture() {
  runtime().capturing = true;
  runtime().clusters = 0;
  refuses(in_clusters(16), {"clusters of 16"});
  refuses(of_whole_grid(133), {"133"});
  refuses(with_shared(300000), {"300000"});
  runtime().errors["cudaFuncGetAttributes"] = cudaErrorUnknown;
  int sum = 0;
  REQUIRE(device::launch(with_shared(0), add<2>, &sum, 1) == cudaErrorUnknown);
  REQUIRE(runtime().calls["cudaLaunchKernelExC"] == 0);
  REQUIRE(fake::mode_of_thread() == cudaStreamCaptureModeGlobal);
}

// ---- the device of a session ----

void old_driver() {
  runtime().errors["cudaDeviceGetAttribute"] = cudaErrorInsufficientDriver;
  const std::string problem = ops::problem_of_device(0, {"90a"});
  REQUIRE(problem == "cuda:0 does not tell its compute capability: the driver is too old");
  REQUIRE(runtime().last == cudaSuccess);
  runtime().errors.clear();
  REQUIRE(ops::problem_of_device(0, {"90a"}).empty());  // nothing wrong is remembered
  REQUIRE(ops::problem_of_device(0, {"80"}).find("compute capability 9.0") != std::string::npos);
}

void capability_is_asked_once() {
  for (int round = 0; round < 3; ++round) REQUIRE(ops::problem_of_device(1, {"90a"}).empty());
  REQUIRE(runtime().calls["cudaDeviceGetAttribute"] == 2);
}

void stream() {
  void* stream = nullptr;
  const std::string problem = ops::find_stream(0, &stream);
#if HAS_TORCH_CUDA
  REQUIRE(problem.empty() && stream == reinterpret_cast<void*>(0x40));
  REQUIRE(ops::find_stream(7, &stream) == "torch gave no CUDA stream of cuda:7");
#else
  REQUIRE(problem.find("libtorch_cuda) is not loaded") != std::string::npos && stream == nullptr);
#endif
}

struct Case {
  const char* name;
  void (*run)();
};

constexpr Case kCases[] = {
    {"another_thread_needs_less", another_thread_needs_less},
    {"another_thread_is_first", another_thread_is_first},
    {"many_threads", many_threads},
    {"once_for_each_kernel_and_device", once_for_each_kernel_and_device},
    {"static_shared_memory", static_shared_memory},
    {"again_after_an_error", again_after_an_error},
    {"too_much_shared_memory", too_much_shared_memory},
    {"large_clusters_are_not_allowed", large_clusters_are_not_allowed},
    {"large_clusters", large_clusters},
    {"no_room_for_clusters", no_room_for_clusters},
    {"compiled_for_a_capability_without_clusters", compiled_for_a_capability_without_clusters},
    {"compiled_for_a_capability", compiled_for_a_capability},
    {"no_room_for_the_grid", no_room_for_the_grid},
    {"refused_by_the_launch", refused_by_the_launch},
    {"errors_are_what_they_are", errors_are_what_they_are},
    {"device_cannot_be_asked", device_cannot_be_asked},
    {"first_launch_in_a_capture", first_launch_in_a_capture},
    {"refusals_do_not_end_a_capture", refusals_do_not_end_a_capture},
    {"old_driver", old_driver},
    {"capability_is_asked_once", capability_is_asked_once},
    {"stream", stream},
};

int run(const Case& one) {
  try {
    one.run();
  } catch (const std::exception& e) {
    std::printf("%s: %s\n", one.name, e.what());
    return 1;
  }
  return 0;
}

}  // namespace

#if HAS_TORCH_CUDA
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(0x40);
  return device == 0 ? 0 : 1;
}
#endif

int main(int count, char** arguments) {
  const char* wanted = count == 2 ? arguments[1] : "";
  for (const Case& one : kCases) {
    if (!std::strcmp(wanted, "--list")) std::printf("%s\n", one.name);
    if (!std::strcmp(wanted, one.name)) return run(one);
  }
  return std::strcmp(wanted, "--list") ? 2 : 0;
}
