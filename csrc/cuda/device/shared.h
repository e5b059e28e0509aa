#pragma once
// Shared memory: one struct per kernel, in dynamic shared memory, and the 32-bit addresses that PTX takes.
#include "cuda/device/platform.h"

namespace xlstm::device {

constexpr int kSharedAlignment = 1024;  // what the 128-byte swizzle of TMA and wgmma asks for

// Address in the shared::cta window.
XLSTM_DEVICE uint32_t shared_address(const void* pointer, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  return simt::shared_address(pointer, where);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#endif
}

// 16 bytes of shared memory, read here: the compiler would put the access off until their use, and wait there.
template <class T>
XLSTM_DEVICE T load_shared_now(const T* pointer) {
  static_assert(sizeof(T) == 16);
#if XLSTM_SIMT
  return *pointer;
#else
  uint4 r;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(shared_address(pointer))
               : "memory");
  return bits_as<T>(r);
#endif
}

}  // namespace xlstm::device

// XLSTM_SHARED(GemmShared, s); makes `s` the kernel's shared memory. Launch with sizeof(GemmShared) bytes.
#if XLSTM_SIMT
#define XLSTM_SHARED(Type, name)                                   \
  static_assert(alignof(Type) <= xlstm::device::kSharedAlignment); \
  Type& name = *static_cast<Type*>(simt::shared_memory())
#else
#define XLSTM_SHARED(Type, name)                                                                            \
  static_assert(alignof(Type) <= xlstm::device::kSharedAlignment);                                          \
  extern __shared__ __align__(xlstm::device::kSharedAlignment) unsigned char xlstm_dynamic_shared_memory[]; \
  Type& name = *reinterpret_cast<Type*>(xlstm_dynamic_shared_memory)
#endif
