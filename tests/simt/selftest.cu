// Runs the cases: `selftest [--seeds N] [--filter TEXT] [--golden write|compare FILE] [--speed]`.
// Prints a line per case and ends with one line of JSON. Exit status 0: everything as expected.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>

#include "cases.h"
#include "cuda/device/platform.h"
#include "golden.h"
#include "speed.h"
#if XLSTM_SIMT
#include "simt/ptx/registry.h"
#endif

namespace selftest {

namespace {

// 90: the executor's, too.
int compute_capability() {
#if XLSTM_SIMT
  return 90;
#else
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return 0;
  return 10 * properties.major + properties.minor;
#endif
}

bool runs_here(Needs needs) {
  static const int capability = compute_capability();
  if (needs == Needs::sm_90a) return capability == 90;
  return capability >= (needs == Needs::sm_90 ? 90 : 80);
}

// Whether the kernels are translated from PTX.
bool in_ptx() {
#if XLSTM_SIMT
  return !ptx::kernel_names().empty();
#else
  return false;
#endif
}

}  // namespace

Cases all_cases() {
  Cases all;
  for (Cases (*group)() :
       {reduce_cases, gemm_cases, recurrence_cases, probe_cases, wgmma_cases, language_cases, memory_cases,
        barrier_cases, wrapper_warp_cases, wrapper_copy_cases, wrapper_elements_cases, wrapper_tma_cases,
        wrapper_wgmma_cases, wrapper_math_cases, wgmma_register_cases, wgmma_layout_cases, tma_rule_cases}) {
    for (Case& c : group()) {
      if (runs_here(c.needs) && !(c.source_only && in_ptx())) all.push_back(std::move(c));
    }
  }
  return all;
}

namespace {

#if !XLSTM_SIMT
constexpr const char* kBuild = "device";
#elif defined(__SANITIZE_THREAD__)
constexpr const char* kBuild = "race";
#else
constexpr const char* kBuild = "plain";
#endif
constexpr bool kRaceBuild = kBuild == std::string_view("race");

struct Arguments {
  int seeds = 1;
  std::string filter;
  bool speed = false;
  std::string golden_mode, golden_file;
};

Arguments parse(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string_view name = values[i];
    const int left = count - 1 - i;
    if (name == "--seeds" && left >= 1) {
      arguments.seeds = std::atoi(values[++i]);
    } else if (name == "--filter" && left >= 1) {
      arguments.filter = values[++i];
    } else if (name == "--golden" && left >= 2) {
      arguments.golden_mode = values[++i];
      arguments.golden_file = values[++i];
    } else if (name == "--speed") {
      arguments.speed = true;
    } else {
      std::fprintf(stderr, "usage: %s [--seeds N] [--filter TEXT] [--golden write|compare FILE] [--speed]\n",
                   values[0]);
      std::exit(2);
    }
  }
  return arguments;
}

void set_seed([[maybe_unused]] int seed) {
#if XLSTM_SIMT
  simt::options().seed = static_cast<uint64_t>(seed);
  simt::options().resident = 1 + seed % 3;
#endif
}

// Empty if the run was right, else what was found.
std::string flaw(const Case& c, int seed, bool& complete_report) {
  set_seed(seed);
  try {
    const double error = largest_error(c.run());
    if (c.expect == Expect::refused || c.expect == Expect::asked) complete_report = false;  // there was none
    if (error <= c.tolerance) return "";
    return "wrong result, error " + std::to_string(error);
  } catch (const std::exception& e) {
    const std::string report = e.what();
    if (XLSTM_SIMT && report.find("seed " + std::to_string(seed)) == std::string::npos) complete_report = false;
    for (const std::string& text : c.report) {
      if (report.find(text) == std::string::npos) complete_report = false;
    }
    return report;
  }
}

struct Tally {
  int cases = 0, faults = 0, found = 0, found_every_seed = 0;
  std::vector<std::string> failed, missed;
};

// Whether the case came out as it must; prints its line.
void run_case(const Case& c, int seeds, Tally& tally) {
  int flagged = 0, first = -1;
  bool complete_report = true;
  std::string what;
  const auto start = std::chrono::steady_clock::now();
  for (int seed = 0; seed < seeds; ++seed) {
    const std::string flaw_found = flaw(c, seed, complete_report);
    if (flaw_found.empty()) continue;
    if (flagged++ == 0) first = seed, what = flaw_found;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  if (!XLSTM_SIMT && c.expect == Expect::asked) {
    std::printf("ask  %-58s %s\n", c.name.c_str(), flagged ? what.c_str() : "as expected");
    return;
  }
  const bool is_fault = c.expect != Expect::correct;
  bool ok = !is_fault ? flagged == 0 : complete_report;
  if (is_fault && kRaceBuild) ok = ok && flagged == seeds;
  if (is_fault && !kRaceBuild && c.expect == Expect::fault) ok = ok && flagged > 0;
  ++tally.cases;
  tally.faults += is_fault;
  tally.found += is_fault && flagged > 0;
  tally.found_every_seed += is_fault && flagged == seeds;
  if (!ok) tally.failed.push_back(c.name);
  if (is_fault && flagged == 0) tally.missed.push_back(c.name);

  std::printf("%s %-58s flagged %d/%d  %7.2f ms a run\n", ok ? "ok  " : "FAIL", c.name.c_str(), flagged, seeds,
              1e3 * seconds / seeds);
  if (!what.empty()) {
    std::printf("       seed %d: %.*s%s%s\n", first, 400, what.c_str(), what.size() > 400 ? "..." : "",
                complete_report ? "" : "\n       the report lacks what it must name");
  }
  std::fflush(stdout);
}

std::string json_list(const std::vector<std::string>& names) {
  std::string list = "[";
  for (const std::string& name : names) list += (list.size() > 1 ? ", \"" : "\"") + name + "\"";
  return list + "]";
}

int run_cases(const Arguments& arguments) {
  Tally tally;
  for (const Case& c : all_cases()) {
    if (c.name.find(arguments.filter) == std::string::npos) continue;
    if (c.expect == Expect::fault_race_only && !kRaceBuild) continue;
    run_case(c, arguments.seeds, tally);
  }
  std::printf(
      "{\"build\": \"%s\", \"seeds\": %d, \"cases\": %d, \"faults\": %d, \"found\": %d, \"found_every_seed\": %d, "
      "\"failed\": %s, \"missed\": %s}\n",
      in_ptx() ? "ptx" : kBuild, arguments.seeds, tally.cases, tally.faults, tally.found, tally.found_every_seed,
      json_list(tally.failed).c_str(), json_list(tally.missed).c_str());
  return tally.failed.empty() && tally.cases > 0 ? 0 : 1;
}

}  // namespace
}  // namespace selftest

int main(int count, char** values) {
  using namespace selftest;
  const Arguments arguments = parse(count, values);
  if (arguments.speed) return measure_speed();
  if (arguments.golden_mode == "write") return write_golden(all_cases(), arguments.golden_file);
  if (arguments.golden_mode == "compare") return compare_golden(all_cases, arguments.golden_file, !XLSTM_SIMT);
  return run_cases(arguments);
}
