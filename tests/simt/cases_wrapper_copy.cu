#include "buffer.h"
#include "cases.h"
#include "kernels/wrappers_copy.h"

namespace selftest {
namespace {

template <int kBytes, CopyWait kWait, bool kThroughL1 = true>
Outcome run_cp_async() {
  const std::vector<float> x = uniform(kCopyFloats, 1);
  Buffer<float> x_buffer(x), out(kCopyFloats);
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(CopyShared), .name = "cp_async"},
                              cp_async_kernel<kBytes, kWait, kThroughL1>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected = x;
  for (int i = 0; i < kCopyFloats; ++i) {
    if (i / (kBytes / 4) % 3 == 2) expected[i] = 0.f;
  }
  return {out.read(), expected};
}

template <bool kFault>
Outcome run_arrival_of_copies() {
  const std::vector<float> x = uniform(32, 1);
  Buffer<float> x_buffer(x), out(x.size());
  check(xlstm::device::launch({.block = 64, .shared_bytes = sizeof(CopyShared), .name = "arrival_of_copies"},
                              arrival_of_copies_kernel<kFault>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected;
  for (const float value : x) expected.push_back(2.f * value);
  return {out.read(), expected};
}

Outcome run_cp_async_part() {
  std::vector<uint8_t> x(16 * 32);
  std::vector<float> expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<uint8_t>(i * 7 + 1);
    expected[i] = i % 16 < i / 16 % 17 ? x[i] : 0.f;
  }
  Buffer<uint8_t> x_buffer(x);
  Buffer<float> out(x.size());
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(CopyShared), .name = "cp_async_part"},
                              cp_async_part_kernel, x_buffer.data(), out.data()));
  synchronise();
  return {out.read(), expected};
}

template <bool kFault>
Outcome run_bulk() {
  const std::vector<float> x = uniform(kCopyFloats, 1);
  Buffer<float> x_buffer(x), out(kCopyFloats), tested(4);
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(CopyShared), .name = "bulk"}, bulk_kernel<kFault>,
                              x_buffer.data(), out.data(), tested.data()));
  synchronise();
  std::vector<float> got = tested.read(), expected{0.f, 1.f, 1.f, 2.f * x.back()};
  for (const float value : out.read()) got.push_back(value);
  for (const float value : x) expected.push_back(2.f * value);
  return {got, expected};
}

Outcome run_exchange() {
  Buffer<float> out(2 * kExchangeFloats);
  check(xlstm::device::launch(
      {.grid = 2, .block = 32, .shared_bytes = sizeof(ExchangeShared), .cluster = 2, .name = "exchange"},
      exchange_kernel, out.data()));
  synchronise();
  std::vector<float> expected;
  for (int rank = 0; rank < 2; ++rank) {
    const float mine = 100.f * rank, peers = 100.f * (rank ^ 1);
    for (int i = 0; i < 8; ++i) expected.push_back(i < 5 ? peers + i : 0.f);
    for (int i = 0; i < 16; ++i) expected.push_back(peers + i);
    for (int i = 0; i < 5; ++i) expected.push_back(mine + i);
    expected.push_back(2.f);
  }
  return {out.read(), expected};
}

}  // namespace

Cases wrapper_copy_cases() {
  Cases cases{{"wrapper: cp.async 4 bytes", run_cp_async<4, CopyWait::group>},
              {"wrapper: cp.async 8 bytes", run_cp_async<8, CopyWait::all>},
              {"wrapper: cp.async 16 bytes", run_cp_async<16, CopyWait::group, false>},
              {"wrapper: cp.async 16 bytes through L1", run_cp_async<16, CopyWait::all, true>},
              {"wrapper: cp.async of part of 16 bytes", run_cp_async_part},
              {"wrapper: cp.async mbarrier arrive", run_cp_async<8, CopyWait::mbarrier>},
              {"wrapper: cp.async mbarrier arrive noinc", run_cp_async<4, CopyWait::mbarrier_noinc>},
              {"wrapper: cp.async mbarrier arrive, alone", run_arrival_of_copies<false>},
              {"wrapper: bulk copies and mbarrier", run_bulk<false>},
              {"wrapper: cluster loads, stores and st.async", run_exchange}};
  for (Case& c : cases) {
    const bool plain_copy =
        c.name.find("cp.async") != std::string::npos && c.name.find("mbarrier") == std::string::npos;
    c.needs = plain_copy ? Needs::sm_80 : Needs::sm_90;
  }
#if XLSTM_FAULTY_CASES
  cases.push_back({"wrapper: an arrival of copies for a write by their thread",
                   run_arrival_of_copies<true>,
                   0,
                   Expect::fault_race,
                   {"RACE", "wrappers_copy.h:"}});
  cases.push_back({"wrapper: reads back a bulk copy whose writes are not waited for",
                   run_bulk<true>,
                   0,
                   Expect::fault,
                   {"wrappers_copy.h:"}});
#endif
  return cases;
}

}  // namespace selftest
