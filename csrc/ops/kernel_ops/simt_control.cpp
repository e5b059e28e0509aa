// Options of the host executor for Python tests: torch.ops.<namespace>.simt_set(name, value), simt_count(name).
#include <cstdlib>
#include <sstream>

#include "ops/library.h"
#include "simt/executor.h"
#include "simt/ptx/count.h"
#include "simt/ptx/registry.h"

namespace xlstm::ops {
namespace {

simt::Order order(const std::string& value) {
  if (value == "fifo") return simt::Order::fifo;
  if (value == "lifo") return simt::Order::lifo;
  return value == "random" ? simt::Order::random : simt::Order::by_seed;
}

simt::Landing landing(const std::string& value) {
  if (value == "early") return simt::Landing::early;
  if (value == "late") return simt::Landing::late;
  return value == "random" ? simt::Landing::random : simt::Landing::by_seed;
}

// Whether there is an option of this name.
bool set(simt::Options& options, const std::string& name, const std::string& value) {
  if (name == "order") {
    options.order = order(value);
  } else if (name == "landing") {
    options.landing = landing(value);
  } else if (name == "mutant") {
    options.mutant = value;
  } else if (name == "seed") {
    options.seed = std::stoull(value);
  } else if (name == "resident") {
    options.resident = std::stoi(value);
  } else if (name == "preempt") {
    options.preempt = std::stoi(value);
  } else if (name == "compute_capability") {
    options.compute_capability = static_cast<unsigned>(std::stoul(value));
  } else if (name == "max_shared_bytes") {
    options.max_shared_bytes = std::stoull(value);
  } else if (name == "max_cluster") {
    options.max_cluster = static_cast<unsigned>(std::stoul(value));
  } else if (name == "multiprocessors") {
    options.multiprocessors = static_cast<unsigned>(std::stoul(value));
  } else if (name == "wait_limit") {
    options.wait_limit = std::stoull(value);
  } else if (name == "adversary") {
    options.adversary = std::stoi(value) != 0;
  } else if (name == "counting") {
    options.counting = std::stoi(value) != 0;
  } else {
    return false;
  }
  return true;
}

// With those that XLSTM_SIMT_OPTIONS="compute_capability=80 multiprocessors=108" gives to a whole process.
simt::Options defaults() {
  simt::Options options;
  const char* given = std::getenv("XLSTM_SIMT_OPTIONS");
  std::istringstream words(given ? given : "");
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    STD_TORCH_CHECK(equals != std::string::npos && set(options, word.substr(0, equals), word.substr(equals + 1)),
                    "XLSTM_SIMT_OPTIONS: no option of the executor: ", word);
  }
  return options;
}

[[maybe_unused]] const bool defaults_are_set = (simt::options() = defaults(), true);

void simt_set(std::string name, std::string value) {
  const auto lock = simt::hold();
  if (name == "defaults") {
    simt::options() = defaults();
  } else if (name == "forget") {
    simt::shared_memory_of_kernels().clear();
  } else {
    STD_TORCH_CHECK(set(simt::options(), name, value), "simt_set: unknown option ", name);
    if (name == "counting") ptx::clear_counters();
  }
}

int64_t simt_count(std::string name) {
  const simt::Stats& stats = simt::stats();
  if (name == "launches") return static_cast<int64_t>(stats.launches);
  if (name == "mma") return static_cast<int64_t>(stats.mma);
  if (name == "wgmma") return static_cast<int64_t>(stats.wgmma);
  STD_TORCH_CHECK(name == "bank_conflicts", "simt_count: unknown statistic ", name);
  return static_cast<int64_t>(stats.bank_conflicts);
}

// Name and most bytes of every kernel launched since simt_set("forget", "launches"), one a line.
std::string simt_shared_memory() {
  const auto lock = simt::hold();
  std::string lines;
  for (const auto& [name, bytes] : simt::shared_memory_of_kernels())
    lines += name + "\t" + std::to_string(bytes) + "\n";
  return lines;
}

// Of a library of PTX: its kernels by architecture and mangled name, one a line.
std::string ptx_kernels() {
  return ptx::kernel_names();
}

// Of a library of PTX: what its kernels executed since simt_set("counting", "1"), as JSON.
std::string ptx_counters() {
  const auto lock = simt::hold();
  return ptx::counters();
}

bool has_planted_faults() {
  return ptx::has_planted_faults();
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def("simt_set(str name, str value) -> ()");
  m.def("simt_count(str name) -> int");
  m.def("simt_shared_memory() -> str");
  m.def("ptx_kernels() -> str");
  m.def("ptx_counters() -> str");
  m.def("has_planted_faults() -> bool");
}

XLSTM_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("simt_set", TORCH_BOX(&simt_set));
  m.impl("simt_count", TORCH_BOX(&simt_count));
  m.impl("simt_shared_memory", TORCH_BOX(&simt_shared_memory));
  m.impl("ptx_kernels", TORCH_BOX(&ptx_kernels));
  m.impl("ptx_counters", TORCH_BOX(&ptx_counters));
  m.impl("has_planted_faults", TORCH_BOX(&has_planted_faults));
}

}  // namespace xlstm::ops
