#pragma once
// The call of an op as torch makes it: its arguments one after the other, as its schema lists them.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/tensors.h"

namespace xlstm::ops {

// A body takes them all before it checks anything: a tensor that nobody takes is never given free.
class Arguments {
 public:
  Arguments(StableIValue* stack, uint64_t count) : next_(stack), end_(stack + count) {}

  // The next one. Initialisers in braces take them in their order.
  Tensor tensor() { return take<Tensor>(); }
  OptionalTensor optional() { return take<OptionalTensor>(); }
  bool flag() { return take<bool>(); }
  int64_t integer() { return take<int64_t>(); }
  template <class T>
  void read(T& value) {
    value = take<T>();
  }

  bool empty() const { return next_ == end_; }

 private:
  template <class T>
  T take() {
    STD_TORCH_CHECK(next_ < end_, "xlstm_cuda: an op reads more arguments than its schema has");
    return torch::stable::detail::to<T>(*next_++);
  }

  StableIValue *next_, *end_;
};

inline void check_results(uint64_t returned, uint64_t count) {
  STD_TORCH_CHECK(returned == count, "xlstm_cuda: an op returns another number of results than its schema has");
}
template <class... T>
void give_back(StableIValue* stack, uint64_t count, const std::tuple<T...>& results) {
  check_results(sizeof...(T), count);
  std::apply([&](const auto&... result) { ((*stack++ = torch::stable::detail::from(result)), ...); }, results);
}
inline void give_back(StableIValue* stack, uint64_t count, const Tensor& result) {
  check_results(1, count);
  *stack = torch::stable::detail::from(result);
}

// An op as torch calls it, with the numbers of its schema. body(arguments) returns a tensor or a tuple of them.
template <auto body>
void boxed(StableIValue* stack, uint64_t argument_count, uint64_t result_count) {
  const NoGrad guard;
  Arguments arguments(stack, argument_count);
  const auto results = body(arguments);
  STD_TORCH_CHECK(arguments.empty(), "xlstm_cuda: an op reads fewer arguments than its schema has");
  give_back(stack, result_count, results);
}

}  // namespace xlstm::ops
