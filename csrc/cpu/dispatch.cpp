// Which SIMD level's kernels run. This file is compiled for the oldest processor that is supported.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

// simd_levels.inc, written by CMake: XLSTM_LEVEL(namespace, "name") for each level that was compiled, best first.
namespace xlstm::cpu {

#define XLSTM_LEVEL(ns, name)      \
  namespace ns {                   \
  extern const KernelTable kTable; \
  }
#include "simd_levels.inc"
#undef XLSTM_LEVEL

namespace {

struct Level {
  const char* name;
  const KernelTable* table;
};

#define XLSTM_LEVEL(ns, name) Level{name, &ns::kTable},
const Level kLevels[] = {
#include "simd_levels.inc"
};
#undef XLSTM_LEVEL

bool runs_here(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!std::strcmp(name, "x86-64-v3")) return v3;
  if (!std::strcmp(name, "x86-64-v4")) {
    return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#else
  (void)name;
#endif
  return true;
}

const Level& choose() {
  const char* wanted = std::getenv("XLSTM_SIMD");
  std::string known;
  for (const Level& level : kLevels) {
    if (wanted && *wanted) {
      known += std::string(known.empty() ? "" : ", ") + level.name;
      if (std::strcmp(wanted, level.name)) continue;
      if (!runs_here(level.name))
        throw std::invalid_argument("XLSTM_SIMD=" + std::string(wanted) + ": this processor lacks it");
      return level;
    }
    if (runs_here(level.name)) return level;
  }
  throw std::invalid_argument("XLSTM_SIMD must be one of " + known + ", got " + (wanted ? wanted : "nothing"));
}

const Level& chosen() {
  static const Level& level = choose();
  return level;
}

}  // namespace

const char* simd_level() {
  return chosen().name;
}

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) {
    if (runs_here(level.name)) names.emplace_back(level.name);
  }
  return names;
}

const KernelTable& kernel_table() {
  return *chosen().table;
}

}  // namespace xlstm::cpu
