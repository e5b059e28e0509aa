#pragma once
// What the self-test runs: kernels that are right, and kernels with one injected fault each.
#include <string>
#include <vector>

// Where the kernels with faults are compiled: not for devices, which they could hang. In PTX that is built for the
// executor they are.
#define XLSTM_FAULTY_CASES (XLSTM_SIMT || XLSTM_PTX_FAULTS)

namespace selftest {

struct Outcome {
  std::vector<float> got, expected;
};

enum class Expect {
  correct,          // the expected result, and no report
  fault,            // a report or a wrong result: on every seed of the race build, on some seed of the plain one
  fault_race,       // the same, but the plain build may miss it
  fault_race_only,  // and the plain build does not run it: it would corrupt the process
  refused,          // a report: on every seed of every build
  asked,            // only a device can tell whether the result is the expected one: the executor refuses to
};

enum class Needs { sm_80, sm_90, sm_90a };  // the devices that a correct case runs on: that one and later, or 9.0 only

struct Case {
  std::string name;  // "topic: what"
  Outcome (*run)();
  double tolerance = 0;  // of got - expected, relative where |expected| > 1
  Expect expect = Expect::correct;
  std::vector<std::string> report = {};  // texts that every report of a fault must contain
  Needs needs = Needs::sm_80;
  bool source_only = false;  // what PTX cannot show
};

using Cases = std::vector<Case>;

// One function per file cases_*.cu; builds for devices hold the correct cases only.
Cases reduce_cases();
Cases gemm_cases();
Cases recurrence_cases();
Cases probe_cases();
Cases wgmma_cases();
Cases language_cases();
Cases memory_cases();
Cases barrier_cases();
Cases wrapper_warp_cases();
Cases wrapper_copy_cases();
Cases wrapper_elements_cases();
Cases wrapper_tma_cases();
Cases wrapper_wgmma_cases();
Cases wrapper_math_cases();
Cases wgmma_register_cases();
Cases wgmma_layout_cases();
Cases tma_rule_cases();

// Those that this device can run.
Cases all_cases();

}  // namespace selftest
