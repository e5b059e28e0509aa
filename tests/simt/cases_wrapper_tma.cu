#include "buffer.h"
#include "cases.h"
#include "kernels/wrappers_tma.h"

namespace selftest {
namespace {

constexpr int kSize[5] = {12, 5, 4, 3, 3};  // of the tensors, innermost first
constexpr int kBox[5] = {8, 2, 2, 2, 2};
constexpr int kLoad[5] = {-4, 4, -1, 2, 1};  // corner of the box that is loaded: partly outside
// And where it is stored: partly outside, but not where all of the data is. Below zero only a device knows what
// happens.
constexpr int kStore[5] = {6, 1, 1, 0, 2}, kStoreBelowZero[5] = {-2, 1, 1, 0, 2};

template <int kDims>
int elements() {
  int n = 1;
  for (int i = 0; i < kDims; ++i) n *= kSize[i];
  return n;
}

template <int kDims>
CUtensorMap box_map(Buffer<float>& buffer) {
  xlstm::device::TensorMapShape<kDims> shape{};
  uint64_t stride = 1;
  for (int i = 0; i < kDims; ++i) {
    shape.size[i] = kSize[i];
    shape.box[i] = kBox[i];
    stride *= kSize[i];
    if (i + 1 < kDims) shape.stride[i] = stride;
  }
  CUtensorMap map;
  if (xlstm::device::make_tensor_map(&map, buffer.data(), shape, CU_TENSOR_MAP_SWIZZLE_NONE) != CUDA_SUCCESS) {
    throw std::runtime_error("no tensor map");
  }
  return map;
}

// Position of an element of a box in its tensor, or -1 outside.
template <int kDims>
int position(const int (&corner)[5], int element) {
  int at = 0, stride = 1;
  for (int i = 0; i < kDims; ++i) {
    const int x = corner[i] + element % kBox[i];
    if (x < 0 || x >= kSize[i]) return -1;
    at += x * stride;
    stride *= kSize[i];
    element /= kBox[i];
  }
  return at;
}

template <int kDims, bool kMulticast, bool kBelowZero = false>
Outcome run_box() {
  constexpr auto& kTo = kBelowZero ? kStoreBelowZero : kStore;
  const std::vector<float> x = uniform(elements<kDims>(), 1), old = uniform(elements<kDims>(), 2);
  Buffer<float> from(x), to0(old), to1(old);
  Corner<kDims> load, store;
  int box = 1;
  for (int i = 0; i < kDims; ++i) load.at[i] = kLoad[i], store.at[i] = kTo[i], box *= kBox[i];
  constexpr unsigned kBlocks = kMulticast ? 2 : 1;
  const xlstm::device::Launch l{
      .grid = kBlocks, .block = 32, .shared_bytes = sizeof(TmaShared), .cluster = kBlocks, .name = "tma_box"};
  check(xlstm::device::launch(l, tma_box_kernel<kDims, kMulticast>, box_map<kDims>(from), box_map<kDims>(to0),
                              box_map<kDims>(to1), load, store));
  synchronise();

  std::vector<float> stored = old;
  for (int i = 0; i < box; ++i) {
    const int source = position<kDims>(kLoad, i), target = position<kDims>(kTo, i);
    if (target >= 0) stored[target] = source < 0 ? 0.f : x[source];
  }
  std::vector<float> got = to0.read(), expected = stored;
  for (const float value : to1.read()) got.push_back(value);
  for (const float value : kMulticast ? stored : old) expected.push_back(value);
  return {got, expected};
}

template <int kBytes>
Outcome run_swizzle() {
  using T = __nv_bfloat16;
  constexpr int kColumns = kBytes / 2;
  constexpr CUtensorMapSwizzle kSwizzle = kBytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                          : kBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                         : CU_TENSOR_MAP_SWIZZLE_32B;
  const std::vector<T> x = uniform<T>(kSwizzleRows * kColumns, 1);
  Buffer<T> from(x), out(x.size());
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(SwizzleShared), .name = "tma_swizzle"},
                              tma_swizzle_kernel<kBytes>,
                              matrix_map(from, kSwizzleRows, kColumns, kSwizzleRows, kColumns, kSwizzle), out.data()));
  synchronise();
  // Chunks of 16 bytes trade places by the number of their 128-byte line.
  std::vector<float> expected(x.size());
  for (int i = 0; i < kSwizzleRows * kColumns; ++i) {
    const int byte = 2 * i, swizzled_byte = byte ^ (byte >> 7 & (kBytes / 16 - 1)) << 4;
    expected[swizzled_byte / 2] = static_cast<float>(x[i]);
  }
  return {out.read_floats(), expected};
}

}  // namespace

Cases wrapper_tma_cases() {
  Cases cases{{"wrapper: TMA box of 1 dimension", run_box<1, false>},
              {"wrapper: TMA box of 2 dimensions", run_box<2, false>},
              {"wrapper: TMA box of 3 dimensions", run_box<3, false>},
              {"wrapper: TMA box of 4 dimensions", run_box<4, false>},
              {"wrapper: TMA box of 5 dimensions", run_box<5, false>},
              {"wrapper: TMA multicast of 1 dimension", run_box<1, true>},
              {"wrapper: TMA multicast of 2 dimensions", run_box<2, true>},
              {"wrapper: TMA multicast of 3 dimensions", run_box<3, true>},
              {"wrapper: TMA multicast of 4 dimensions", run_box<4, true>},
              {"wrapper: TMA multicast of 5 dimensions", run_box<5, true>},
              {"wrapper: TMA swizzle of 32 bytes", run_swizzle<32>},
              {"wrapper: TMA swizzle of 64 bytes", run_swizzle<64>},
              {"wrapper: TMA swizzle of 128 bytes", run_swizzle<128>}};
  cases.push_back({"asked: TMA stores a box that begins below zero",
                   run_box<2, false, true>,
                   0,
                   Expect::asked,
                   {"below zero", "wrappers_tma.h:"}});
  for (Case& c : cases) c.needs = c.name.find("multicast") == std::string::npos ? Needs::sm_90 : Needs::sm_90a;
  return cases;
}

}  // namespace selftest
