#pragma once
// Values of the element types of tensor cores.
#include <cstdint>
#include <cstring>

#include "simt/executor.h"

namespace simt {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <Element kElement>
float half_value(uint32_t bits) {
  const auto half = static_cast<uint16_t>(bits);
  if constexpr (kElement == Element::bf16) return float_from_bits(uint32_t{half} << 16);
  _Float16 value;
  std::memcpy(&value, &half, sizeof value);
  return static_cast<float>(value);
}

// The hardware ignores the low 13 bits.
inline float tf32_value(uint32_t bits) {
  return float_from_bits(bits & 0xffffe000u);
}

}  // namespace simt
