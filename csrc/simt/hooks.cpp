// The run time of -fsanitize=thread,alignment,bounds: kernel code compiled with it reports its accesses here. These
// replace the sanitizers' own libraries, which are not linked.
#include <cstddef>
#include <cstdint>

#include "simt/fault.h"
#include "simt/race.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

inline void on_access(void* pointer, size_t bytes, Access access, size_t alignment, const void* pc) {
  if (!machine.running || !in_arena(pointer)) return;
  if (reinterpret_cast<uintptr_t>(pointer) % alignment) fault_at(site_of(pc), "MISALIGNED access of %zu bytes", bytes);
  if (!machine.races) return;
  ++stats().accesses;
  record(pointer, bytes, access, actor_of(*machine.running), site_of(pc));
  preempt();
}

// Where UBSan was compiled in: what its handlers are given first.
struct UbsanLocation {
  const char* file;
  uint32_t line, column;
  operator Source() const { return {file, static_cast<int>(line)}; }
};

}  // namespace
}  // namespace simt

#define SIMT_HOOK extern "C" __attribute__((visibility("hidden")))

#define SIMT_ACCESS_HOOKS(bytes)                                                        \
  SIMT_HOOK void __tsan_read##bytes(void* p) {                                          \
    simt::on_access(p, bytes, simt::Access::read, bytes, __builtin_return_address(0));  \
  }                                                                                     \
  SIMT_HOOK void __tsan_write##bytes(void* p) {                                         \
    simt::on_access(p, bytes, simt::Access::write, bytes, __builtin_return_address(0)); \
  }                                                                                     \
  SIMT_HOOK void __tsan_unaligned_read##bytes(void* p) {                                \
    simt::on_access(p, bytes, simt::Access::read, 1, __builtin_return_address(0));      \
  }                                                                                     \
  SIMT_HOOK void __tsan_unaligned_write##bytes(void* p) {                               \
    simt::on_access(p, bytes, simt::Access::write, 1, __builtin_return_address(0));     \
  }                                                                                     \
  SIMT_HOOK void __tsan_volatile_read##bytes(void* p) {                                 \
    simt::on_access(p, bytes, simt::Access::read, bytes, __builtin_return_address(0));  \
  }                                                                                     \
  SIMT_HOOK void __tsan_volatile_write##bytes(void* p) {                                \
    simt::on_access(p, bytes, simt::Access::write, bytes, __builtin_return_address(0)); \
  }
SIMT_ACCESS_HOOKS(1)
SIMT_ACCESS_HOOKS(2)
SIMT_ACCESS_HOOKS(4)
SIMT_ACCESS_HOOKS(8)
SIMT_ACCESS_HOOKS(16)

SIMT_HOOK void __tsan_read_range(void* p, size_t bytes) {
  simt::on_access(p, bytes, simt::Access::read, 1, __builtin_return_address(0));
}
SIMT_HOOK void __tsan_write_range(void* p, size_t bytes) {
  simt::on_access(p, bytes, simt::Access::write, 1, __builtin_return_address(0));
}

SIMT_HOOK void __tsan_init() {
  simt::instrumented = true;
}
SIMT_HOOK void __tsan_func_entry(void*) {}
SIMT_HOOK void __tsan_func_exit() {}
SIMT_HOOK void __tsan_vptr_update(void**, void*) {}
SIMT_HOOK void __tsan_vptr_read(void**) {}

// Guards of function-local statics, the only std::atomic operations in host code beside kernels; one thread runs.
SIMT_HOOK unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return *p;
}
SIMT_HOOK int __tsan_atomic32_load(const volatile int* p, int) {
  return *p;
}
SIMT_HOOK int __tsan_atomic32_fetch_add(volatile int* p, int v, int) {
  return __sync_fetch_and_add(p, v);
}

SIMT_HOOK void __ubsan_handle_type_mismatch_v1_abort(void* location, void*) {
  simt::fault(*static_cast<simt::UbsanLocation*>(location), "MISALIGNED or null pointer access");
}
SIMT_HOOK void __ubsan_handle_out_of_bounds_abort(void* location, void*) {
  simt::fault(*static_cast<simt::UbsanLocation*>(location), "OUT OF BOUNDS index of an array");
}
