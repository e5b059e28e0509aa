#pragma once
// What the ISA leaves open, decided against the kernel (simt::options().adversary): the error of approximate functions,
// whether ptxas fuses mul and add, and how old the value is that a relaxed load may still see.
#include <cmath>

#include "simt/ptx/types.h"

namespace ptx {

inline bool adversary() {
  return simt::options().adversary;
}

// From -1 to 1, the same for the same bits and seed: a device gives the same result for the same operand.
double drawn(u64 bits);

template <class T>
inline u64 bits_of(T x) {
  if constexpr (sizeof(T) == 8)
    return std::bit_cast<u64>(x);
  else
    return std::bit_cast<u32>(x);
}

// An exact result with an error of up to `relative`, or `absolute`; zeros, infinities and NaN stay.
template <class T>
inline T approximate(T exact, T operand, double relative, double absolute = 0) {
  if (!adversary() || exact == 0 || !std::isfinite(exact)) return exact;
  const double most = std::fmax(relative * std::fabs(static_cast<double>(exact)), absolute);
  const double off = static_cast<double>(exact) + most * drawn(bits_of(operand));
  // rounding may not add to the error
  const T result = static_cast<T>(off);
  return std::fabs(static_cast<double>(result) - static_cast<double>(exact)) <= most ? result : exact;
}

// Whether ptxas fuses this instruction, an add without a rounding mode, with the mul before it.
bool contracted(u32 instruction);

// Before a launch: what is kept belongs to the one before it, whose clocks are no more.
void forget();
// A store to memory that others may load meanwhile: keeps what was there. Before it is written or released to.
void remember(const void* place, u32 bytes);
// What a load of these bytes may see in the place of the latest value; null: nothing older. In a race build, where it
// is known which stores happened before the load.
const void* outdated(const void* place, u32 bytes);
// ld.acquire of that older value: sees what happened before its own store.
void acquire_outdated(const void* place);

}  // namespace ptx
