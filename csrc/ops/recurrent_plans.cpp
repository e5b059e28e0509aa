// recurrent_plans and recurrent_variant: how the recurrent CUDA kernels run a call, and the request of a test for one
// way.
#include <algorithm>
#include <string>
#include <utility>

#include "cuda/recurrent/scan.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

constexpr const char* kRequest = "recurrent_variant: words are block, cluster, grid, launch, units=N, teams=N; got ";

// "cluster units=32 teams=4": any of these words, in any order.
cuda::PlanRequest request_named(const std::string& name) {
  cuda::PlanRequest request;
  // no stream: on a machine whose C++ runtime is another one, unwinding through it ended the process
  for (size_t at = name.find_first_not_of(' '), end = 0; at < name.size(); at = name.find_first_not_of(' ', end)) {
    end = std::min(name.find(' ', at), name.size());
    const std::string word = name.substr(at, end - at);
    bool known = false;
    for (const auto v : {cuda::Variant::block, cuda::Variant::cluster, cuda::Variant::grid, cuda::Variant::launch}) {
      if (word == cuda::name_of(v)) request.variant = v, known = true;
    }
    for (const auto& [key, value] : {std::pair{"units=", &request.units}, std::pair{"teams=", &request.teams}}) {
      const std::string digits = word.starts_with(key) ? word.substr(6) : "";
      if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789") != std::string::npos) continue;
      *value = std::stoi(digits), known = true;
    }
    STD_TORCH_CHECK(known, kRequest, name);
  }
  return request;
}

std::string name_of(const cuda::PlanRequest& request) {
  std::string name = request.variant ? cuda::name_of(*request.variant) : "";
  const auto add = [&](const char* key, int value) {
    if (value) name += (name.empty() ? "" : " ") + std::string(key) + std::to_string(value);
  };
  add("units=", request.units), add("teams=", request.teams);
  return name;
}

// What the next calls of all threads use; "": the best that fits. Returns the request before.
std::string recurrent_variant(std::string name) {
  return name_of(cuda::request_plans(request_named(name)));
}

Type type_named(const std::string& name) {
  if (name == "bf16") return Type::bf16;
  if (name == "f16") return Type::f16;
  if (name == "f32") return Type::f32;
  STD_TORCH_CHECK(name == "f64", "recurrent_plans: bf16, f16, f32 or f64, got ", name);
  return Type::f64;
}

// The plans for a call on a device, best first, a line each: variant, units, blocks, teams, tiles, rows of a tile and
// rounds.
std::string recurrent_plans(int64_t B, int64_t H, int64_t D, std::string type, int64_t compute_capability,
                            int64_t multiprocessors, int64_t max_cluster, bool backward, std::string request) {
  const cuda::RecurrentDevice device = {static_cast<int>(compute_capability), static_cast<int>(multiprocessors),
                                        static_cast<int>(max_cluster)};
  const cuda::Direction direction = backward ? cuda::Direction::backward : cuda::Direction::forward;
  std::string lines;
  const auto plans = cuda::recurrent_plans({B, 1, H, D}, type_named(type), device, direction, request_named(request));
  for (const cuda::RecurrentPlan& plan : plans) {
    lines += cuda::name_of(plan.variant);
    for (const int x : {plan.units, plan.blocks, plan.teams, plan.tiles, plan.rows, plan.rounds})
      lines += " " + std::to_string(x);
    lines += "\n";
  }
  return lines;
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def("recurrent_variant(str name) -> str");
  m.def(
      "recurrent_plans(int B, int H, int D, str dtype, int compute_capability, int multiprocessors, int max_cluster, "
      "bool backward, str request='') -> str");
}

XLSTM_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("recurrent_variant", TORCH_BOX(&recurrent_variant));
  m.impl("recurrent_plans", TORCH_BOX(&recurrent_plans));
}

}  // namespace xlstm::ops
