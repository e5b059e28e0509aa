#pragma once
// Kernels translated from PTX, by name and architecture. Launchers stay as they are: simt::launch asks here for the
// other form of a kernel. A library that has any runs nothing else.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "simt/executor.h"

namespace ptx {

struct Parameter {
  size_t offset, bytes;
};

struct Kernel {
  const char *name, *arch;  // the mangled name, anonymous namespaces as g++ writes them; "sm_90a"
  void (*body)(const uint8_t* parameters);
  const Parameter* parameters;
  size_t parameter_count;
  Kernel* next;
  // Registers itself.
  Kernel(const char* name, const char* arch, void (*body)(const uint8_t*), const Parameter*, size_t parameter_count);
};

// The kernel of this name for the device that simt::options() imitates; a fault where there is none, or two.
const Kernel& find(const std::string& name);
// Its body with the arguments where PTX has its parameters; a fault where these are others.
std::function<void()> bound(const Kernel&, const std::vector<simt::KernelArgument>&);

// A translated file whose kernels have planted faults (cuda/device/mutant.h). The active one's hash stands where the
// PTX has its variable.
struct PlantedFaults {
  PlantedFaults();
};
uint32_t* planted_fault();

// Whether a fault chosen by options().mutant can have an effect: not in PTX as it ships.
bool has_planted_faults();

// "sm_90a gates_kernel...", one a line: what this library has.
std::string kernel_names();

}  // namespace ptx
