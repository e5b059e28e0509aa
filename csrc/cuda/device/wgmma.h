#pragma once
// Products of a warpgroup, 128 threads (sm_90a): D (64 x N) += A B, B and possibly A read from shared memory.
//
// Thread t, g = t % 32 / 4, c = 2 (t % 4), row = 16 (t / 32 % 4) + g: d[4 j + 2 h + e] is D[row + 8 h][8 j + c + e].
// A in registers: as the A fragment of mma_m16n8k16 for the 16 rows of each warp.
//
// Between issue and wgmma_wait neither d, nor the registers of A, nor the shared memory may be touched, and arrays of
// registers stay in scope. wgmma_fence comes before the first product and wherever d or A's registers were touched
// since, wgmma_operands before it and after the wait; fence_proxy_async after ordinary writes of the shared memory. All
// 128 threads execute every one of these.
#include "cuda/device/mma.h"
#include "cuda/device/platform.h"

namespace xlstm::device {

enum class Swizzle : uint64_t { none = 0, bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };

// Descriptor of a matrix in shared memory, which starts where the pattern of its swizzle does: at a multiple of 8 rows
// of 128, 64 or 32 bytes. Steps of K go on inside the first row where K is contiguous. K-major with a swizzle: 8 rows
// every `stride` bytes, `leading` unused. MN-major with a swizzle: 8 steps of K every `stride` bytes, the next 64, 32
// or 16 elements of MN every `leading` bytes.
XLSTM_DEVICE uint64_t wgmma_descriptor(uint32_t address, uint32_t leading, uint32_t stride, Swizzle swizzle) {
  const auto field = [](uint32_t bytes) { return uint64_t{(bytes & 0x3ffff) >> 4}; };
  return field(address) | field(leading) << 16 | field(stride) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

XLSTM_DEVICE void wgmma_fence([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::wgmma_fence(where);
#else
  XLSTM_ASM_SM90A("wgmma.fence.sync.aligned;" :: : "memory");
#endif
}

XLSTM_DEVICE void wgmma_commit([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::wgmma_commit(where);
#else
  XLSTM_ASM_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory");
#endif
}

// Until at most kGroups of the latest groups are in flight, 0 to 7.
template <int kGroups>
XLSTM_DEVICE void wgmma_wait([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::wgmma_wait(kGroups, where);
#else
  XLSTM_ASM_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
#endif
}

// What these registers are made of is computed before this place, and what is made of them after it: nvcc would move
// arithmetic of registers across the fence and the wait, which say nothing of registers. By index: a range-for of 64
// registers is not unrolled, and they go to local memory.
template <int kCount>
XLSTM_DEVICE void wgmma_operands([[maybe_unused]] float (&d)[kCount]) {
#if !XLSTM_SIMT
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

template <int kCount>
XLSTM_DEVICE void wgmma_operands([[maybe_unused]] uint32_t (&a)[kCount]) {
#if !XLSTM_SIMT
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
#endif
}

#if !XLSTM_SIMT

// The accumulator's registers as operands %0 .. %(N / 2 - 1), and the text that names them.
#define XLSTM_REGISTERS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define XLSTM_REGISTERS_8(i) XLSTM_REGISTERS_4(i), XLSTM_REGISTERS_4(i + 4)
#define XLSTM_REGISTERS_16(i) XLSTM_REGISTERS_8(i), XLSTM_REGISTERS_8(i + 8)
#define XLSTM_REGISTERS_24(i) XLSTM_REGISTERS_16(i), XLSTM_REGISTERS_8(i + 16)
#define XLSTM_REGISTERS_32(i) XLSTM_REGISTERS_16(i), XLSTM_REGISTERS_16(i + 16)
#define XLSTM_REGISTERS_48(i) XLSTM_REGISTERS_32(i), XLSTM_REGISTERS_16(i + 32)
#define XLSTM_REGISTERS_64(i) XLSTM_REGISTERS_32(i), XLSTM_REGISTERS_32(i + 32)
#define XLSTM_REGISTERS_96(i) XLSTM_REGISTERS_64(i), XLSTM_REGISTERS_32(i + 64)
#define XLSTM_REGISTERS_128(i) XLSTM_REGISTERS_64(i), XLSTM_REGISTERS_64(i + 64)

#define XLSTM_NAMES_4 "%0, %1, %2, %3"
#define XLSTM_NAMES_8 XLSTM_NAMES_4 ", %4, %5, %6, %7"
#define XLSTM_NAMES_16 XLSTM_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define XLSTM_NAMES_24 XLSTM_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define XLSTM_NAMES_32 XLSTM_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define XLSTM_NAMES_48 \
  XLSTM_NAMES_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define XLSTM_NAMES_64 \
  XLSTM_NAMES_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define XLSTM_NAMES_96                                                               \
  XLSTM_NAMES_64                                                                     \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define XLSTM_NAMES_128                                                                          \
  XLSTM_NAMES_96                                                                                 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// p0 .. p6: names of the operands that follow the accumulator's.
#define XLSTM_WGMMA_SS(n, types, count, p0, p1, p2, p3, p4)                                                         \
  XLSTM_ASM_SM90A("{ .reg .pred p; setp.ne.b32 p, " p2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types \
                  " {" XLSTM_NAMES_##count "}, " p0 ", " p1 ", p, 1, 1, " p3 ", " p4                                \
                                           "; }" : XLSTM_REGISTERS_##count(0) : "l"(a),                             \
                  "l"(b), "r"(static_cast<int>(accumulate)), "n"(kATransposed), "n"(kBTransposed))
#define XLSTM_WGMMA_RS(n, types, count, p0, p1, p2, p3, p4, p5, p6)                                                 \
  XLSTM_ASM_SM90A("{ .reg .pred p; setp.ne.b32 p, " p5 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types \
                  " {" XLSTM_NAMES_##count "}, {" p0 ", " p1 ", " p2 ", " p3 "}, " p4 ", p, 1, 1, " p6              \
                                           "; }" : XLSTM_REGISTERS_##count(0) : "r"(a[0]),                          \
                  "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kBTransposed))

template <int N>
struct WgmmaInstruction;

#define XLSTM_WGMMA_INSTRUCTION(n, count, p0, p1, p2, p3, p4, p5, p6)                                     \
  template <>                                                                                             \
  struct WgmmaInstruction<n> {                                                                            \
    template <class T, int kATransposed, int kBTransposed>                                                \
    static XLSTM_DEVICE void ss(float (&d)[count], uint64_t a, uint64_t b, bool accumulate) {             \
      if constexpr (kIsBf16<T>) {                                                                         \
        XLSTM_WGMMA_SS(n, "bf16.bf16", count, p0, p1, p2, p3, p4);                                        \
      } else {                                                                                            \
        XLSTM_WGMMA_SS(n, "f16.f16", count, p0, p1, p2, p3, p4);                                          \
      }                                                                                                   \
    }                                                                                                     \
    template <class T, int kBTransposed>                                                                  \
    static XLSTM_DEVICE void rs(float (&d)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
      if constexpr (kIsBf16<T>) {                                                                         \
        XLSTM_WGMMA_RS(n, "bf16.bf16", count, p0, p1, p2, p3, p4, p5, p6);                                \
      } else {                                                                                            \
        XLSTM_WGMMA_RS(n, "f16.f16", count, p0, p1, p2, p3, p4, p5, p6);                                  \
      }                                                                                                   \
    }                                                                                                     \
  };

XLSTM_WGMMA_INSTRUCTION(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
XLSTM_WGMMA_INSTRUCTION(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
XLSTM_WGMMA_INSTRUCTION(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
XLSTM_WGMMA_INSTRUCTION(48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
XLSTM_WGMMA_INSTRUCTION(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
XLSTM_WGMMA_INSTRUCTION(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
XLSTM_WGMMA_INSTRUCTION(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
XLSTM_WGMMA_INSTRUCTION(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
XLSTM_WGMMA_INSTRUCTION(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef XLSTM_WGMMA_INSTRUCTION
#undef XLSTM_WGMMA_SS
#undef XLSTM_WGMMA_RS
#undef XLSTM_NAMES_4
#undef XLSTM_NAMES_8
#undef XLSTM_NAMES_16
#undef XLSTM_NAMES_24
#undef XLSTM_NAMES_32
#undef XLSTM_NAMES_48
#undef XLSTM_NAMES_64
#undef XLSTM_NAMES_96
#undef XLSTM_NAMES_128
#undef XLSTM_REGISTERS_4
#undef XLSTM_REGISTERS_8
#undef XLSTM_REGISTERS_16
#undef XLSTM_REGISTERS_24
#undef XLSTM_REGISTERS_32
#undef XLSTM_REGISTERS_48
#undef XLSTM_REGISTERS_64
#undef XLSTM_REGISTERS_96
#undef XLSTM_REGISTERS_128

#endif  // !XLSTM_SIMT

// One step of K = 16, T bf16 or fp16, A and B by descriptor. Transposed: MN-major in shared memory instead of K-major.
// accumulate false: D = A B.
template <class T, int N, bool kATransposed = false, bool kBTransposed = false>
XLSTM_DEVICE void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true,
                           [[maybe_unused]] Source where = Source::here()) {
  static_assert(kIsBf16<T> || kIsF16<T>);
#if XLSTM_SIMT
  constexpr simt::Element kElement = kIsBf16<T> ? simt::Element::bf16 : simt::Element::f16;
  simt::wgmma(kElement, N, d, nullptr, a, b, kATransposed, kBTransposed, accumulate, where);
#else
  WgmmaInstruction<N>::template ss<T, kATransposed, kBTransposed>(d, a, b, accumulate);
#endif
}

// The same with A in registers.
template <class T, int N, bool kBTransposed = false>
XLSTM_DEVICE void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                           [[maybe_unused]] Source where = Source::here()) {
  static_assert(kIsBf16<T> || kIsF16<T>);
#if XLSTM_SIMT
  constexpr simt::Element kElement = kIsBf16<T> ? simt::Element::bf16 : simt::Element::f16;
  const uint32_t* const registers[] = {&a[0], &a[1], &a[2], &a[3]};
  simt::wgmma(kElement, N, d, registers, 0, b, false, kBTransposed, accumulate, where);
#else
  WgmmaInstruction<N>::template rs<T, kBTransposed>(d, a, b, accumulate);
#endif
}

}  // namespace xlstm::device
