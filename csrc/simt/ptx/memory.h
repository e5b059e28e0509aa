#pragma once
// Loads, stores and atomics (PTX ISA 9.7.9) of memory that the executor owns. Every access is checked for alignment and
// for its state space; a race build records it. Generic and global addresses are pointers; shared ones have 32 bits, as
// simt/memory.h makes them.
#include <cstring>
#include <initializer_list>

#include "simt/memory.h"
#include "simt/ptx/adversary.h"
#include "simt/ptx/count.h"
#include "simt/ptx/types.h"
#include "simt/race.h"
#include "simt/scheduler.h"

namespace ptx {

inline u8* pointer(u64 address) {
  return reinterpret_cast<u8*>(address);
}
inline Traffic traffic_of(const void* p, simt::Access access) {
  const bool global = simt::in_global_memory(p);
  if (simt::is_atomic(access)) return Traffic::atomic;
  if (access == simt::Access::read) return global ? Traffic::load_global : Traffic::load_shared;
  return global ? Traffic::store_global : Traffic::store_shared;
}
inline void recorded(const void* p, size_t bytes, simt::Access access, At where) {
  if (counting()) [[unlikely]]
    count_access(traffic_of(p, access), p, bytes, where);
  if (!simt::machine.races) return;
  simt::record(p, bytes, access, where);
  simt::preempt();
}
inline void aligned(u64 address, size_t bytes, At where) {
  if (address & (bytes - 1)) [[unlikely]]
    simt::fault(where, "MISALIGNED access of %zu bytes", bytes);
}

// ---- state spaces: where an access goes, or a fault ----
// The block's shared memory: addresses from `own` on.
struct Shared {
  u8* base;
  u32 own, bytes;
  Shared() {
    const simt::Block& block = *simt::machine.running->block;
    base = block.shared;
    own = simt::make_address(block.rank, 0);
    bytes = static_cast<u32>(simt::machine.config.shared_bytes);
  }
  u8* at(u64 address, u32 size, At where) const {
    const u64 offset = address - own;
    aligned(offset, size, where);
    if (offset + size > bytes || offset > bytes) [[unlikely]] {
      simt::fault(where, "OUT OF BOUNDS access of shared memory: %u bytes at 0x%llx, this block has %u from 0x%x on",
                  size, static_cast<unsigned long long>(address), bytes, own);
    }
    return base + offset;
  }
};
inline u8* global_at(u64 address, size_t bytes, At where) {
  aligned(address, bytes, where);
  u8* p = pointer(address);
  if (simt::in_arena(p) && !simt::in_global_memory(p)) [[unlikely]] {
    simt::fault(where, "an access of global memory whose address is one of shared memory");
  }
  return p;
}
inline u8* generic_at(u64 address, size_t bytes, At where) {
  aligned(address, bytes, where);
  return pointer(address);
}
// cvta
inline u64 to_shared(u64 address, At where) {
  return simt::shared_address(pointer(address), where);
}
inline u64 from_shared(u64 address, At where) {
  return reinterpret_cast<u64>(simt::generic_pointer(static_cast<u32>(address), where));
}

// ---- weak loads and stores ----
template <class T, int N>
inline Vec<T, N> load(const u8* p, At where) {
  Vec<T, N> v;
  recorded(p, sizeof v, simt::Access::read, where);
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T, int N>
inline void store(u8* p, const Vec<T, N>& v, At where) {
  recorded(p, sizeof v, simt::Access::write, where);
  std::memcpy(p, &v, sizeof v);
}
template <class T, int N>
inline Vec<T, N> ld_global(u64 address, At where) {
  return load<T, N>(global_at(address, sizeof(Vec<T, N>), where), where);
}
// ld.global.nc
template <class T, int N>
inline Vec<T, N> ld_constant(u64 address, At where) {
  simt::require_constant(pointer(address), sizeof(Vec<T, N>), where);
  return ld_global<T, N>(address, where);
}
template <class T, int N>
inline void st_global(u64 address, const Vec<T, N>& v, At where) {
  store(global_at(address, sizeof v, where), v, where);
}
template <class T, int N>
inline Vec<T, N> ld_generic(u64 address, At where) {
  return load<T, N>(generic_at(address, sizeof(Vec<T, N>), where), where);
}
template <class T, int N>
inline void st_generic(u64 address, const Vec<T, N>& v, At where) {
  store(generic_at(address, sizeof v, where), v, where);
}
template <class T, int N>
inline Vec<T, N> ld_shared(const Shared& S, u64 address, At where) {
  return load<T, N>(S.at(address, sizeof(Vec<T, N>), where), where);
}
template <class T, int N>
inline void st_shared(const Shared& S, u64 address, const Vec<T, N>& v, At where) {
  store(S.at(address, sizeof v, where), v, where);
}
// Shared memory of any block of the cluster.
template <class T, int N>
inline Vec<T, N> ld_cluster(u64 address, At where) {
  Vec<T, N> v;
  simt::load_cluster(&v, static_cast<u32>(address), sizeof v, where);
  return v;
}
template <class T, int N>
inline void st_cluster(u64 address, const Vec<T, N>& v, At where) {
  simt::store_cluster(static_cast<u32>(address), &v, sizeof v, where);
}
// Local memory of the thread: a depot for the whole kernel.
struct Local {
  u8* base;
  u32 bytes;
  u8* at(u64 address, u32 size, At where) const {
    const u64 offset = address - reinterpret_cast<u64>(base);
    aligned(address, size, where);
    if (offset + size > bytes || offset > bytes) [[unlikely]] {
      simt::fault(where, "OUT OF BOUNDS access of local memory: %u bytes at +%lld of %u", size,
                  static_cast<long long>(offset), bytes);
    }
    return base + offset;
  }
};
template <class T, int N>
inline Vec<T, N> ld_local(const Local& local, u64 address, At where) {
  Vec<T, N> v;
  std::memcpy(&v, local.at(address, sizeof v, where), sizeof v);
  return v;
}
template <class T, int N>
inline void st_local(const Local& local, u64 address, const Vec<T, N>& v, At where) {
  std::memcpy(local.at(address, sizeof v, where), &v, sizeof v);
}
// Parameters and constants; what goes to a called function and comes back.
template <class T, int N>
inline Vec<T, N> ld_private(u64 address, At) {
  Vec<T, N> v;
  std::memcpy(&v, pointer(address), sizeof v);
  return v;
}
template <class T, int N>
inline void st_private(u64 address, const Vec<T, N>& v, At) {
  std::memcpy(pointer(address), &v, sizeof v);
}

// ---- volatile, relaxed, acquire and release accesses; atomics ----
enum class Order { relaxed, acquire, release, acq_rel, volatile_access };

inline bool acquires(Order order) {
  return order == Order::acquire || order == Order::acq_rel;
}
inline bool releases(Order order) {
  return order == Order::release || order == Order::acq_rel;
}

// What fences make of a thread's relaxed accesses: a fence acquires what the loads before it have read, and the stores
// after it release.
class Strong {
 public:
  void saw(const void* p) { read_[reads_++ % kRemembered] = p; }
  bool fenced() const { return fenced_; }
  void fence() {
    for (u32 i = 0; i < std::min(reads_, kRemembered); ++i) simt::acquire(read_[i]);
    reads_ = 0;
    fenced_ = true;
  }

 private:
  static constexpr u32 kRemembered = 8;
  const void* read_[kRemembered];
  u32 reads_ = 0;
  bool fenced_ = false;
};

// A load lets other threads run, as it may poll.
template <class T, int N>
inline Vec<T, N> ld_strong(Strong& strong, Order order, u64 address, At where) {
  Vec<T, N> v;
  const u8* p = generic_at(address, sizeof v, where);
  if (simt::in_arena(p)) {
    simt::check_live(where);
    recorded(p, sizeof v, simt::Access::atomic_load, where);
  }
  bool latest = true;
  for (int i = 0; i < N; ++i) {
    const u8* element = p + i * sizeof(T);
    const void* before = outdated(element, sizeof(T));
    std::memcpy(&v.x[i], before ? before : element, sizeof(T));
    if (before && acquires(order)) acquire_outdated(element);
    latest = latest && !before;
  }
  if (acquires(order) && latest) simt::acquire(p);
  strong.saw(p);
  return v;
}
template <class T, int N>
inline void st_strong(Strong& strong, Order order, u64 address, const Vec<T, N>& v, At where) {
  u8* p = generic_at(address, sizeof v, where);
  for (int i = 0; i < N; ++i) remember(p + i * sizeof(T), sizeof(T));
  if (releases(order) || strong.fenced()) simt::release_to(p);
  simt::machine.polls = 0;
  recorded(p, sizeof v, simt::Access::atomic_store, where);
  std::memcpy(p, &v, sizeof v);
}

template <class T, class F>
inline T read_modify_write(Strong& strong, Order order, u64 address, At where, F update) {
  T old;
  u8* p = generic_at(address, sizeof old, where);
  remember(p, sizeof old);
  if (releases(order) || strong.fenced()) simt::release_to(p);
  simt::machine.polls = 0;
  recorded(p, sizeof old, simt::Access::atomic, where);
  std::memcpy(&old, p, sizeof old);
  const T value = update(old);
  std::memcpy(p, &value, sizeof value);
  if (acquires(order)) simt::acquire(p);
  strong.saw(p);
  return old;
}
#define PTX_ATOMIC(name, expression)                                                                               \
  template <class T>                                                                                               \
  inline T atom_##name(Strong& strong, Order order, u64 address, At where, T value) {                              \
    return read_modify_write<T>(strong, order, address, where, [&](T old) { return static_cast<T>(expression); }); \
  }
PTX_ATOMIC(add, old + value)
PTX_ATOMIC(min, old < value ? old : value)
PTX_ATOMIC(max, old > value ? old : value)
PTX_ATOMIC(and, old& value)
PTX_ATOMIC(or, old | value)
PTX_ATOMIC(xor, old ^ value)
PTX_ATOMIC(exch, value)
PTX_ATOMIC(inc, old >= value ? 0 : old + 1)
PTX_ATOMIC(dec, old == 0 || old > value ? value : old - 1)
#undef PTX_ATOMIC
template <class T>
inline T atom_cas(Strong& strong, Order order, u64 address, At where, T expected, T value) {
  return read_modify_write<T>(strong, order, address, where, [&](T old) { return old == expected ? value : old; });
}

}  // namespace ptx
