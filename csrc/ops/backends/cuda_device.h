#pragma once
// What a session asks of a CUDA device and of torch's CUDA library. Without torch's headers: a test compiles it with a
// CUDA runtime that refuses.
#include <cstdint>
#include <string>
#include <vector>

namespace xlstm::ops {

// Empty where code for `archs` runs on the device; else a sentence.
std::string problem_of_device(int device, const std::vector<std::string>& archs);

// Torch's current stream of the device. Empty, or a sentence.
std::string find_stream(int device, void** stream);

}  // namespace xlstm::ops
