#pragma once
// What to tell a user whose device cannot run a kernel.
#include <string>
#include <vector>

namespace xlstm::ops {

constexpr int kMinimumCapability = 80;

// "9.0" for 90.
std::string capability_name(int capability);

// Empty where a device of this compute capability can run code built for `archs` ("80", "90a", "120"); else a sentence.
// Code of one major version runs on the same or a later minor version; with an `a` or `f` only where it was built for.
std::string unsupported_device(int capability, const std::vector<std::string>& archs);

}  // namespace xlstm::ops
