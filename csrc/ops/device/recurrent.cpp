// recurrent_fwd and recurrent_bwd on CUDA kernels: the best plan that the device takes. Nothing is read back.
#include "ops/recurrent.h"

#include <atomic>

#include "cuda/recurrent/device.h"
#include "cuda/recurrent/resident.h"
#include "cuda/recurrent/stepwise.h"
#include "cuda/recurrent/weight_grad.h"
#include "ops/device/session.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

std::atomic<int> only{-1};  // a Variant that tests and benchmarks ask for

// The name of the one variant to use, "" for the best that fits. Returns the one before.
std::string recurrent_variant(std::string name) {
  int wanted = -1;
  for (const auto v : {cuda::Variant::block, cuda::Variant::cluster, cuda::Variant::grid, cuda::Variant::launch}) {
    if (name == cuda::name_of(v)) wanted = static_cast<int>(v);
  }
  STD_TORCH_CHECK(wanted >= 0 || name.empty(), "recurrent_variant: block, cluster, grid, launch or nothing, got ",
                  name);
  const int before = only.exchange(wanted);
  return before < 0 ? "" : cuda::name_of(static_cast<cuda::Variant>(before));
}

cuda::Type type_named(const std::string& name) {
  if (name == "bf16") return cuda::Type::bf16;
  if (name == "f16") return cuda::Type::f16;
  if (name == "f32") return cuda::Type::f32;
  STD_TORCH_CHECK(name == "f64", "recurrent_plans: bf16, f16, f32 or f64, got ", name);
  return cuda::Type::f64;
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

Flags device_flags(Session& session, const OptionalTensor& x) {
  Flags here = flags(x);
  here.data = session.in_as<bool>(x);
  return here;
}

RecurrentState<const void> on(Session& session, const State& state) {
  return {session.in(state.h), session.in(state.c), session.in(state.n), session.in(state.m)};
}

RecurrentState<void> on(Session& session, const NewState& state) {
  return {session.out(state.h), session.out(state.c), state.slstm ? session.out(state.n) : nullptr,
          state.slstm ? session.out(state.m) : nullptr};
}

// Launches the first plan that the device has room for. workspace(plan): bytes; launch(plan, memory).
template <class Workspace, class Launch>
void run_plans(Session& session, const RecurrentShape& shape, cuda::Type type, Workspace workspace, Launch launch) {
  cudaError_t error = cudaErrorInvalidConfiguration;  // of a variant that was asked for and does not fit
  for (const cuda::RecurrentPlan& plan : cuda::recurrent_plans(shape, type, cuda::recurrent_device())) {
    if (only >= 0 && static_cast<int>(plan.variant) != only) continue;
    const size_t bytes = workspace(plan);
    error = launch(plan, bytes ? session.workspace(bytes) : nullptr);
    if (error != cudaErrorLaunchOutOfResources) break;
  }
  session.check(error);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_fwd(
    const Tensor& x, const Tensor& R, OptionalTensor b, OptionalTensor h0, OptionalTensor c0, OptionalTensor n0,
    OptionalTensor m0, OptionalTensor lengths, OptionalTensor reset, int64_t cell_number, int64_t reversed_heads,
    bool allow_tf32, bool save) {
  NoGrad guard;
  const auto [cell, s, type, slstm] = RecurrentFwdCall(x, R, b, reset, cell_number, reversed_heads);
  check_sizes("recurrent", kMaxDeviceDim, {{s.batch}, {s.seqlen}});
  const ScalarType T = x.scalar_type();
  const Tensor x_c = as(x, T), R_c = as_weights(R, T);
  const OptionalTensor b_c = b ? as_contiguous(b, b->scalar_type()) : b, longs = checked_lengths(lengths, s);
  const OptionalTensor reset_c = as_contiguous(reset, ScalarType::Bool);
  const State initial(rounded(h0, x), c0, n0, m0, type, s, slstm);
  const NewState final(x, type, s, slstm);
  const Tensor h = empty(x, {s.batch, s.seqlen, s.num_heads, s.head_dim}, T);
  const Tensor saved = empty(x, save ? Shape{s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim} : Shape{0}, T);
  if (s.batch == 0) return {h, final.h, final.c, final.n, final.m, saved};
  Session session("recurrent_fwd", x);
  const cuda::RecurrentFwdArguments arguments = {s,
                                                 cell,
                                                 type_of(x),
                                                 allow_tf32,
                                                 gate_view(session.in(x_c), x_c),
                                                 weight_view(session.in(R_c), R_c),
                                                 {session.in(b_c), b_c ? type_of(*b_c) : cuda::Type::f32},
                                                 session.in_as<int64_t>(longs),
                                                 device_flags(session, reset_c),
                                                 on(session, initial),
                                                 session.out(h),
                                                 on(session, final),
                                                 save ? session.out(saved) : nullptr};
  run_plans(
      session, s, arguments.type,
      [&](const cuda::RecurrentPlan& plan) {
        return plan.variant == cuda::Variant::launch ? cuda::stepwise_fwd_workspace(arguments)
                                                     : cuda::resident_fwd_workspace(arguments, plan);
      },
      [&](const cuda::RecurrentPlan& plan, void* workspace) {
        return plan.variant == cuda::Variant::launch ? cuda::stepwise_fwd(arguments, workspace, session.stream())
                                                     : cuda::resident_fwd(arguments, plan, workspace, session.stream());
      });
  session.finish();
  return {h, final.h, final.c, final.n, final.m, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_bwd(
    const Tensor& dh, OptionalTensor dhT, OptionalTensor dcT, OptionalTensor dnT, OptionalTensor dmT, const Tensor& R,
    const Tensor& h, OptionalTensor h0, OptionalTensor c0, OptionalTensor n0, OptionalTensor m0, const Tensor& cT,
    const Tensor& nT, const Tensor& saved, OptionalTensor lengths, OptionalTensor reset, int64_t cell_number,
    int64_t reversed_heads, bool allow_tf32) {
  NoGrad guard;
  const auto [cell, s, type, slstm] = RecurrentBwdCall(dh, R, h, saved, reset, cell_number, reversed_heads);
  check_sizes("recurrent", kMaxDeviceDim, {{s.batch}, {s.seqlen}});
  const ScalarType T = h.scalar_type();
  const Tensor dh_c = as_contiguous(dh, T), h_c = as_contiguous(h, T), R_c = as_weights(R, T);
  const Tensor saved_c = as_contiguous(saved, T);
  const OptionalTensor longs = checked_lengths(lengths, s), reset_c = as_contiguous(reset, ScalarType::Bool);
  const OptionalTensor n_final = slstm ? OptionalTensor(nT) : std::nullopt;
  const State initial(rounded(h0, h), c0, n0, m0, type, s, slstm), final({}, cT, n_final, {}, type, s, slstm);
  const State final_grad(dhT, dcT, dnT, dmT, type, s, slstm);
  const NewState initial_grad(h, type, s, slstm);
  const Tensor dx = empty(h, {s.batch, s.seqlen, kGates, s.num_heads, s.head_dim}, T);
  const Tensor dR = empty(h, {kGates, s.num_heads, s.head_dim, s.head_dim}, T);
  const Tensor db = empty(h, {kGates, s.num_heads, s.head_dim}, type);
  Session session("recurrent_bwd", h);
  const cuda::Type data = type_of(h);
  const Flags resets = device_flags(session, reset_c);
  void* const dx_data = session.out(dx);
  const auto start = on(session, initial);
  if (s.batch > 0) {
    const cuda::RecurrentBwdArguments arguments = {s,
                                                   cell,
                                                   data,
                                                   allow_tf32,
                                                   weight_view(session.in(R_c), R_c),
                                                   session.in(dh_c),
                                                   session.in(saved_c),
                                                   session.in_as<int64_t>(longs),
                                                   resets,
                                                   start,
                                                   on(session, final),
                                                   on(session, final_grad),
                                                   dx_data,
                                                   on(session, initial_grad)};
    run_plans(
        session, s, data,
        [&](const cuda::RecurrentPlan& plan) {
          return plan.variant == cuda::Variant::launch ? cuda::stepwise_bwd_workspace(arguments)
                                                       : cuda::resident_bwd_workspace(arguments, plan);
        },
        [&](const cuda::RecurrentPlan& plan, void* workspace) {
          return plan.variant == cuda::Variant::launch
                     ? cuda::stepwise_bwd(arguments, workspace, session.stream())
                     : cuda::resident_bwd(arguments, plan, workspace, session.stream());
        });
  }
  const cuda::RecurrentWeightGradArguments weights = {s,
                                                      data,
                                                      allow_tf32,
                                                      dx_data,
                                                      session.in(h_c),
                                                      start.h,
                                                      session.in_as<int64_t>(longs),
                                                      resets,
                                                      session.out(dR),
                                                      session.out(db)};
  const size_t bytes = cuda::recurrent_weight_grad_workspace(weights);
  session.check(cuda::recurrent_weight_grad(weights, bytes ? session.workspace(bytes) : nullptr, session.stream()));
  session.finish();
  return {dx, dR, db, initial_grad.h, initial_grad.c, initial_grad.n, initial_grad.m};
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

XLSTM_DEVICE_LIBRARY_IMPL(m) {
  m.impl("recurrent_fwd", TORCH_BOX(&recurrent_fwd));
  m.impl("recurrent_bwd", TORCH_BOX(&recurrent_bwd));
}

}  // namespace xlstm::ops
