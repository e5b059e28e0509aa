#pragma once
// The services of the host for a CPU kernel, so that it needs no threading library and allocates nothing itself.
#include <cstddef>
#include <cstdint>

namespace xlstm {

struct Runtime {
  using Body = void (*)(const void* context, int64_t begin, int64_t end);

  // Runs body over [0, count) in pieces of at least `grain` items, on the host's threads.
  void (*run)(int64_t count, int64_t grain, const void* context, Body body);
  // This thread's buffer `slot` (0 or 1), at least `bytes` long, 64-byte aligned; valid until this thread asks for the
  // slot again. Slot 0 is for the calling thread of a kernel, slot 1 for the bodies of its parallel loops.
  void* (*scratch)(int slot, size_t bytes);
  int (*num_threads)();

  // f(begin, end) for each piece.
  template <class F>
  void parallel_ranges(int64_t count, int64_t grain, const F& f) const {
    run(count, grain, &f,
        [](const void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); });
  }

  // f(n) for each item.
  template <class F>
  void parallel(int64_t count, int64_t grain, const F& f) const {
    parallel_ranges(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) f(n);
    });
  }
};

}  // namespace xlstm
