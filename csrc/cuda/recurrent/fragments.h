#pragma once
// Products of a warp on the tensor cores: 16 rows of weights, which stay in registers, times 8 batch rows. What depends
// on the element type is here: a kernel is a template on a Fragments.
//
// A result tile has 16 x 8 sums. Lane l, g = l / 4, c = 2 (l % 4), holds
//   d[0], d[1]  (row g, batch rows c and c + 1)     d[2], d[3]  (row g + 8, the same batch rows)
#include "cuda/device/device.h"

namespace xlstm::cuda {

enum class Passes { one, three };  // float32: one pass in TF32, or three over big and small parts, error about 2^-22

template <class T, Passes kPasses = Passes::one>
struct Fragments;

// Batch rows that Fragments multiplies without tensor cores, where these would need three passes: a matrix-vector
// product in plain float takes 8 operations of a lane for two rows, and splits nothing into parts.
template <class F>
constexpr int kFewRows = 0;
template <>
inline constexpr int kFewRows<Fragments<float, Passes::three>> = 2;

// The 16 x kDepth weights of a lane, from shared memory: rows `pitch` elements apart, aligned to 4 bytes.
// multiply: d += weights times the kDepth values of batch row g, in shared memory from `from` on (of the lane's g).
// load_values: of kCount steps along k, from batch row 0 in shared memory, for 16 bits aligned to 16 bytes.
// weights_of, values_of: from 8 bytes of the rows g and g + 8, and of batch row g: kDepth / 4 elements along k, which
// the four lanes of a row may share out as they like.
template <class T>
struct HalfFragments {
  using Element = T;
  using Sum = float;
  static constexpr int kDepth = 16;
  struct Weights {
    uint32_t x[4];
  };
  struct Values {
    uint32_t x[2];
  };

  XLSTM_DEVICE static Weights load_shared(const T* from, int pitch) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    Weights w;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w.x[j] = *reinterpret_cast<const uint32_t*>(from + (g + j % 2 * 8) * pitch + c + j / 2 * 8);
    }
    return w;
  }

  XLSTM_DEVICE static Weights weights_of(uint2 upper, uint2 lower) { return {{upper.x, lower.x, upper.y, lower.y}}; }
  XLSTM_DEVICE static Values values_of(uint2 x) { return {{x.x, x.y}}; }

  XLSTM_DEVICE static void multiply(float (&d)[4], const Weights& w, const Values& v) {
    device::mma_m16n8k16<T>(d, w.x, v.x);
  }

  XLSTM_DEVICE static void multiply(float (&d)[4], const Weights& w, const T* from) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(from) + threadIdx.x % 4;
    multiply(d, w, Values{{pairs[0], pairs[4]}});
  }

  template <int kCount>
  XLSTM_DEVICE static void load_values(Values (&values)[kCount], const T* from, int pitch) {
    static_assert(kCount % 2 == 0);
    const int lane = threadIdx.x % 32;
    const uint32_t at = device::shared_address(from + lane % 8 * pitch + lane / 8 * 8);
#pragma unroll
    for (int k = 0; k < kCount; k += 2) {
      uint32_t x[4];
      device::ldmatrix(x, at + k * kDepth * static_cast<uint32_t>(sizeof(T)));
      values[k] = {{x[0], x[1]}}, values[k + 1] = {{x[2], x[3]}};
    }
  }
};

template <>
struct Fragments<__nv_bfloat16> : HalfFragments<__nv_bfloat16> {};
template <>
struct Fragments<__half> : HalfFragments<__half> {};

template <Passes kPasses>
struct Fragments<float, kPasses> {
  using Element = float;
  using Sum = float;
  static constexpr int kDepth = 8;
  struct Weights {
    float x[4];
  };
  struct Values {
    float x[2];
  };

  template <class At>
  XLSTM_DEVICE static Weights load(At at) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    return rounded({{at(g, t), at(g + 8, t), at(g, t + 4), at(g + 8, t + 4)}});
  }

  XLSTM_DEVICE static Weights load_shared(const float* from, int pitch) {
    return load([&](int row, int k) { return from[row * pitch + k]; });
  }

  XLSTM_DEVICE static Weights weights_of(uint2 upper, uint2 lower) {
    return rounded({{device::bits_as<float>(upper.x), device::bits_as<float>(lower.x), device::bits_as<float>(upper.y),
                     device::bits_as<float>(lower.y)}});
  }
  XLSTM_DEVICE static Values values_of(uint2 x) { return {{device::bits_as<float>(x.x), device::bits_as<float>(x.y)}}; }

  XLSTM_DEVICE static void multiply(float (&d)[4], const Weights& w, const Values& v) {
    uint32_t big_w[4], big_b[2];
    float a[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = kPasses == Passes::one ? w.x[j] : device::opaque(w.x[j]);  // parts made anew
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      big_w[j] = kPasses == Passes::one ? device::bits_as<uint32_t>(a[j]) : device::round_tf32(a[j]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) big_b[j] = device::round_tf32(v.x[j]);
    if constexpr (kPasses == Passes::three) {
      uint32_t small_w[4], small_b[2];
#pragma unroll
      for (int j = 0; j < 4; ++j) small_w[j] = small_part(a[j], big_w[j]);
#pragma unroll
      for (int j = 0; j < 2; ++j) small_b[j] = small_part(v.x[j], big_b[j]);
      device::mma_m16n8k8_tf32(d, small_w, big_b);
      device::mma_m16n8k8_tf32(d, big_w, small_b);
    }
    device::mma_m16n8k8_tf32(d, big_w, big_b);
  }

  XLSTM_DEVICE static void multiply(float (&d)[4], const Weights& w, const float* from) {
    const int t = threadIdx.x % 4;
    multiply(d, w, Values{{from[t], from[t + 4]}});
  }

  template <int kCount>
  XLSTM_DEVICE static void load_values(Values (&values)[kCount], const float* from, int pitch) {
    from += threadIdx.x % 32 / 4 * pitch + threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = {{from[k * kDepth], from[k * kDepth + 4]}};
  }

  // kFewRows: the products of this lane's columns with two batch rows, as d of (row g, row 0), (row g, row 1) and the
  // same of row g + 8.
  XLSTM_DEVICE static void multiply_few(float (&d)[4], const Weights& w, const Values (&rows)[2]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) d[j] += w.x[k * 2 + j / 2] * rows[j % 2].x[k];
    }
  }
  // Of those at `from` and a pitch after it.
  XLSTM_DEVICE static void multiply_few(float (&d)[4], const Weights& w, const float* from, int pitch) {
    from += threadIdx.x % 4;
    multiply_few(d, w, {{{from[0], from[4]}}, {{from[pitch], from[pitch + 4]}}});
  }
  // Adds up the columns and leaves the sums where multiply has them: batch rows 0 and 1 are those of t = 0.
  XLSTM_DEVICE static void finish_few(float (&d)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      d[j] += __shfl_xor_sync(~0u, d[j], 1);
      d[j] += __shfl_xor_sync(~0u, d[j], 2);
      if (threadIdx.x % 4 != 0) d[j] = 0;
    }
  }

 private:
  // Weights of one pass are rounded once, when they are loaded.
  XLSTM_DEVICE static Weights rounded(Weights w) {
#pragma unroll
    for (int j = 0; kPasses == Passes::one && j < 4; ++j) {
      w.x[j] = device::bits_as<float>(device::round_tf32(w.x[j]));
    }
    return w;
  }

  // mma ignores the digits that make it more than a TF32. Of an infinity: zero, so that it does not become NaN.
  XLSTM_DEVICE static uint32_t small_part(float x, uint32_t big) {
    const float rest = x - device::bits_as<float>(big);
    return device::bits_as<uint32_t>(std::fabs(x) < INFINITY ? rest : 0.f);
  }
};

template <>
struct Fragments<double> {
  using Element = double;
  using Sum = double;
  static constexpr int kDepth = 4;
  struct Weights {
    double x[2];
  };
  struct Values {
    double x;
  };

  template <class At>
  XLSTM_DEVICE static Weights load(At at) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    return {{at(g, t), at(g + 8, t)}};
  }

  XLSTM_DEVICE static Weights load_shared(const double* from, int pitch) {
    return load([&](int row, int k) { return from[row * pitch + k]; });
  }

  XLSTM_DEVICE static Weights weights_of(uint2 upper, uint2 lower) {
    return {{device::bits_as<double>(upper), device::bits_as<double>(lower)}};
  }
  XLSTM_DEVICE static Values values_of(uint2 x) { return {device::bits_as<double>(x)}; }

  XLSTM_DEVICE static void multiply(double (&d)[4], const Weights& w, const Values& v) {
    device::mma_m8n8k4_f64(d[0], d[1], w.x[0], v.x);
    device::mma_m8n8k4_f64(d[2], d[3], w.x[1], v.x);
  }

  XLSTM_DEVICE static void multiply(double (&d)[4], const Weights& w, const double* from) {
    multiply(d, w, Values{from[threadIdx.x % 4]});
  }

  template <int kCount>
  XLSTM_DEVICE static void load_values(Values (&values)[kCount], const double* from, int pitch) {
    from += threadIdx.x % 32 / 4 * pitch + threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = {from[k * kDepth]};
  }
};

}  // namespace xlstm::cuda
