// recurrent_plans and recurrent_variant: how the recurrent CUDA kernels run a call, and the request of a test for one
// way.
#include "cuda/recurrent/scan.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

// The name of the one variant to use, "" for the best that fits. Returns the one before.
std::string recurrent_variant(std::string name) {
  std::optional<cuda::Variant> wanted;
  for (const auto v : {cuda::Variant::block, cuda::Variant::cluster, cuda::Variant::grid, cuda::Variant::launch}) {
    if (name == cuda::name_of(v)) wanted = v;
  }
  STD_TORCH_CHECK(wanted || name.empty(), "recurrent_variant: block, cluster, grid, launch or nothing, got ", name);
  const std::optional<cuda::Variant> before = cuda::only_variant(wanted);
  return before ? cuda::name_of(*before) : "";
}

Type type_named(const std::string& name) {
  if (name == "bf16") return Type::bf16;
  if (name == "f16") return Type::f16;
  if (name == "f32") return Type::f32;
  STD_TORCH_CHECK(name == "f64", "recurrent_plans: bf16, f16, f32 or f64, got ", name);
  return Type::f64;
}

// The plans for a call on a device, best first, a line each: variant, units, blocks, teams and tiles.
std::string recurrent_plans(int64_t B, int64_t H, int64_t D, std::string type, int64_t compute_capability,
                            int64_t multiprocessors, int64_t max_cluster) {
  const cuda::RecurrentDevice device = {static_cast<int>(compute_capability), static_cast<int>(multiprocessors),
                                        static_cast<int>(max_cluster)};
  std::string lines;
  for (const cuda::RecurrentPlan& plan : cuda::recurrent_plans({B, 1, H, D}, type_named(type), device)) {
    lines += cuda::name_of(plan.variant);
    for (const int x : {plan.units, plan.blocks, plan.teams, plan.tiles}) lines += " " + std::to_string(x);
    lines += "\n";
  }
  return lines;
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def("recurrent_variant(str name) -> str");
  m.def(
      "recurrent_plans(int B, int H, int D, str dtype, int compute_capability, int multiprocessors, int max_cluster) "
      "-> str");
}

XLSTM_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("recurrent_variant", TORCH_BOX(&recurrent_variant));
  m.impl("recurrent_plans", TORCH_BOX(&recurrent_plans));
}

}  // namespace xlstm::ops
