#pragma once
// The number of a planted fault where its name cannot be compared: FNV-1a.
#include <cstdint>

#include "core/view.h"

namespace xlstm::device {

XLSTM_HOST_DEVICE constexpr uint32_t fault_hash(const char* name) {
  uint32_t hash = 2166136261u;
  for (; *name; ++name) hash = (hash ^ static_cast<unsigned char>(*name)) * 16777619u;
  return hash;
}

}  // namespace xlstm::device
