#include "ops/backends/architecture.h"

#include <cstdlib>

namespace xlstm::ops {
namespace {

bool runs_on(const std::string& arch, int capability) {
  const int built = std::atoi(arch.c_str());
  const bool specific = arch.back() == 'a' || arch.back() == 'f';
  return specific ? built == capability : built / 10 == capability / 10 && built <= capability;
}

}  // namespace

std::string capability_name(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::string unsupported_device(int capability, const std::vector<std::string>& archs) {
  const std::string name = capability_name(capability);
  if (capability < kMinimumCapability) {
    return "this GPU has compute capability " + name + ", the kernels need " + capability_name(kMinimumCapability) +
           " or later: use backend='reference'";
  }
  std::string list;
  for (const std::string& arch : archs) {
    if (runs_on(arch, capability)) return {};
    list += (list.empty() ? "sm_" : ", sm_") + arch;
  }
  return "this build has kernels for " + list + " and the GPU has compute capability " + name +
         ": build again with TORCH_CUDA_ARCH_LIST=" + name;
}

}  // namespace xlstm::ops
