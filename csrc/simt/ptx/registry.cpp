#include "simt/ptx/registry.h"

#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "cuda/device/fault_hash.h"
#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/ptx/adversary.h"
#include "simt/ptx/collective.h"
#include "simt/ptx/symbols.h"
#include "simt/state.h"

namespace ptx {
namespace {

Kernel* first_kernel = nullptr;
bool faults_planted = false;

// Of the code that a device of this compute capability runs.
const char* architecture() {
  return simt::options().compute_capability == 90 ? "sm_90a" : "sm_80";
}

void check_parameters(const Kernel& kernel, const std::vector<simt::KernelArgument>& arguments) {
  bool same = arguments.size() == kernel.parameter_count;
  for (size_t i = 0; same && i < arguments.size(); ++i) same = arguments[i].bytes == kernel.parameters[i].bytes;
  if (!same) simt::throw_error(std::string("its PTX has other parameters than its source: ") + kernel.name);
}

}  // namespace

Kernel::Kernel(const char* name, const char* arch, void (*body)(const uint8_t*), const Parameter* parameters,
               size_t parameter_count)
    : name(name),
      arch(arch),
      body(body),
      parameters(parameters),
      parameter_count(parameter_count),
      next(std::exchange(first_kernel, this)) {}

PlantedFaults::PlantedFaults() {
  faults_planted = true;
}

uint32_t* planted_fault() {
  static uint32_t hash;
  const std::string& active = simt::options().mutant;
  hash = active.empty() ? 0 : xlstm::device::fault_hash(active.c_str());
  return &hash;
}

bool has_planted_faults() {
  return !first_kernel || faults_planted;
}

const Kernel& find(const std::string& name) {
  const Kernel* found = nullptr;
  for (const Kernel* k = first_kernel; k; k = k->next) {
    if (name != k->name || std::strcmp(architecture(), k->arch)) continue;
    if (found) simt::throw_error("two translations of " + name + " for " + k->arch);
    found = k;
  }
  if (!found) simt::throw_error(std::string("no translation of its PTX for ") + architecture() + ": " + name);
  return *found;
}

std::function<void()> bound(const Kernel& kernel, const std::vector<simt::KernelArgument>& arguments) {
  check_parameters(kernel, arguments);
  size_t bytes = 0;
  for (size_t i = 0; i < arguments.size(); ++i) bytes = kernel.parameters[i].offset + arguments[i].bytes;
  std::vector<uint64_t> block((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));  // aligned as its widest member
  const auto start = [](const std::vector<uint64_t>& words) { return reinterpret_cast<const uint8_t*>(words.data()); };
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::memcpy(reinterpret_cast<uint8_t*>(block.data()) + kernel.parameters[i].offset, arguments[i].value,
                arguments[i].bytes);
  }
  return [block = std::move(block), start, body = kernel.body] { body(start(block)); };
}

std::string kernel_names() {
  std::string lines;
  for (const Kernel* k = first_kernel; k; k = k->next) lines += std::string(k->arch) + " " + k->name + "\n";
  return lines;
}

u64 grid_workspace() {
  static u64 launch = 0, workspace = 0;
  if (!simt::machine.config.cooperative) return 0;
  if (std::exchange(launch, simt::stats().launches) != simt::stats().launches) {
    constexpr size_t kBytes = 64;
    void* memory = simt::allocate(kBytes);
    std::memset(memory, 0, kBytes);
    simt::mark_written(memory, kBytes);
    workspace = reinterpret_cast<u64>(memory);
  }
  return workspace;
}

}  // namespace ptx

namespace simt {

std::function<void()> translated(const LaunchConfig& config, const void* function,
                                 const std::vector<KernelArgument>& arguments) {
  if (!ptx::first_kernel) return {};
  const auto lock = hold();
  machine.config = config;  // messages name the kernel
  ptx::forget();
  static std::map<std::pair<const void*, std::string>, const ptx::Kernel*> known;
  const ptx::Kernel*& kernel = known[{function, ptx::architecture()}];
  if (!kernel) kernel = &ptx::find(ptx::symbol_at(function));
  return ptx::bound(*kernel, arguments);
}

}  // namespace simt
