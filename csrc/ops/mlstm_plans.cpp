// mlstm_plan and mlstm_variant: how the CUDA kernels run a call of the chunkwise mLSTM, and the request of a test for
// one way.
#include <string>
#include <utility>

#include "cuda/mlstm_chunkwise/chunkwise.h"
#include "ops/library.h"
#include "ops/request_words.h"

namespace xlstm::ops {
namespace {

constexpr const char* kRequest = "mlstm_variant: words are walk, passes, mma, wgmma, segments=N; got ";

// "passes wgmma segments=3": any of these words, in any order.
cuda::MlstmRequest request_named(const std::string& name) {
  cuda::MlstmRequest request;
  const bool known = take_words(name, [&](const std::string& word) {
    for (const bool walk : {false, true}) {
      if (word == (walk ? "walk" : "passes")) request.walk = walk;
    }
    for (const auto by : {cuda::TensorCores::mma, cuda::TensorCores::wgmma}) {
      if (word == cuda::name_of(by)) request.by = by;
    }
    return word == "walk" || word == "passes" || word == "mma" || word == "wgmma" ||
           take_number(word, "segments=", request.segments);
  });
  STD_TORCH_CHECK(known, kRequest, name);
  return request;
}

std::string name_of(const cuda::MlstmRequest& request) {
  std::string name;
  if (request.walk) add_word(name, *request.walk ? "walk" : "passes");
  if (request.by) add_word(name, cuda::name_of(*request.by));
  if (request.segments) add_word(name, "segments=" + std::to_string(request.segments));
  return name;
}

// What the next calls of all threads use; "": what is planned. Returns the request before.
std::string mlstm_variant(std::string name) {
  return name_of(cuda::request_mlstm(request_named(name)));
}

cuda::Product product_named(const std::string& name) {
  if (name == "bf16") return cuda::Product::bf16;
  if (name == "tf32") return cuda::Product::tf32;
  if (name == "tf32x3") return cuda::Product::tf32x3;
  STD_TORCH_CHECK(name == "f64", "mlstm_plan: bf16, tf32, tf32x3 or f64, got ", name);
  return cuda::Product::f64;
}

// The plan for a call on a device, a line for each kernel: "chunks 128", "walk 1" with its segments, "walk_dC 1",
// "states mma 3", "h wgmma". Nothing where the request cannot be met. packed: so many sequences of a single batch row,
// 0: none. tma: the names of q, k, v, h, dh, dq, dk, dv that TMA can read.
std::string mlstm_plan(int64_t B, int64_t H, int64_t S, int64_t Dqk, int64_t Dv, int64_t packed, std::string product,
                       int64_t chunk_size, std::string tma, bool wgmma, int64_t multiprocessors, int64_t shared_bytes,
                       std::string request) {
  constexpr int32_t kPacked = 0;  // what there is to read of cu_seqlens is not read
  cuda::MlstmCall call;
  call.shape = {B, H, S, Dqk, Dv, packed ? &kPacked : nullptr, packed ? packed : B};
  call.product = product_named(product);
  call.chunk_size = chunk_size;
  take_words(tma, [&](const std::string& name) {
    auto& of = call.tma;
    for (const auto& [known, reads] : {std::pair{"q", &of.q},
                                       {"k", &of.k},
                                       {"v", &of.v},
                                       {"h", &of.h},
                                       {"dh", &of.dh},
                                       {"dq", &of.dq},
                                       {"dk", &of.dk},
                                       {"dv", &of.dv}}) {
      if (name == known) *reads = true;
    }
    return true;
  });
  const cuda::MlstmDevice device = {wgmma, static_cast<int>(multiprocessors), static_cast<size_t>(shared_bytes)};
  const auto plan = cuda::mlstm_plan(call, device, request_named(request));
  if (!plan) return "";
  std::string lines = "chunks " + std::to_string(plan->chunk_size) + "\n";
  const auto walk = [&](const char* name, int segments) {
    lines += std::string(name) + " " + std::to_string(segments) + "\n";
  };
  if (plan->walk) walk("walk", *plan->walk);
  if (const auto& grads = plan->grad_walks) walk("walk_C", grads->with_C), walk("walk_dC", grads->with_dC);
  const auto states = [&](const char* name, const cuda::StatesPlan& of) {
    lines += std::string(name) + " " + cuda::name_of(of.by) + " " + std::to_string(of.segments) + "\n";
  };
  states("states", plan->states), states("state_grads", plan->state_grads);
  const auto output = [&](const char* name, cuda::TensorCores by) {
    lines += std::string(name) + " " + cuda::name_of(by) + "\n";
  };
  output("h", plan->h), output("dq", plan->dq), output("dk", plan->dk), output("dv", plan->dv);
  return lines;
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def("mlstm_variant(str name) -> str");
  m.def(
      "mlstm_plan(int B, int H, int S, int Dqk, int Dv, int packed, str product, int chunk_size, str tma, bool wgmma, "
      "int multiprocessors, int shared_bytes, str request='') -> str");
}

XLSTM_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("mlstm_variant", TORCH_BOX(&mlstm_variant));
  m.impl("mlstm_plan", TORCH_BOX(&mlstm_plan));
}

}  // namespace xlstm::ops
