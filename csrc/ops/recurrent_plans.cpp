// recurrent_plans and recurrent_variant: how the recurrent CUDA kernels run a call, and the request of a test for one
// way.
#include <string>

#include "cuda/recurrent/scan.h"
#include "ops/library.h"
#include "ops/request_words.h"

namespace xlstm::ops {
namespace {

constexpr const char* kRequest = "recurrent_variant: words are block, cluster, grid, launch, units=N, teams=N; got ";

// "cluster units=32 teams=4": any of these words, in any order.
cuda::PlanRequest request_named(const std::string& name) {
  cuda::PlanRequest request;
  const bool known = take_words(name, [&](const std::string& word) {
    for (const auto v : {cuda::Variant::block, cuda::Variant::cluster, cuda::Variant::grid, cuda::Variant::launch}) {
      if (word == cuda::name_of(v)) {
        request.variant = v;
        return true;
      }
    }
    return take_number(word, "units=", request.units) || take_number(word, "teams=", request.teams);
  });
  STD_TORCH_CHECK(known, kRequest, name);
  return request;
}

std::string name_of(const cuda::PlanRequest& request) {
  std::string name = request.variant ? cuda::name_of(*request.variant) : "";
  if (request.units) add_word(name, "units=" + std::to_string(request.units));
  if (request.teams) add_word(name, "teams=" + std::to_string(request.teams));
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
