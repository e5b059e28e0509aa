#pragma once
// A session is one call of an op on one backend: where kernels find the memory of its tensors, in which dtype they take
// them, and how they are launched. CpuSession (cpu.h) and DeviceSession (device.h) have the same members; here is what
// op bodies make of these.
#include "ops/tensors.h"

namespace xlstm::ops {

// T as a value, void too.
template <class T>
struct Of {
  using Type = T;
};

// A conversion of x, kept until the session ends where it is one.
template <class Session>
const Tensor& kept(Session& session, const Tensor& x, Tensor converted) {
  return converted.get() == x.get() ? x : session.keep(std::move(converted));
}

// x (B, H, S, D), or (B, H, D), as kernels take data: the last dimension contiguous.
template <class T, class Session>
ViewOf<const T> rows_in(Session& session, const Tensor& x, bool has_time = true) {
  const Tensor& rows = kept(session, x, as(x, session.dtype_for(x)));
  return view_of<const T>(session.in(rows), rows, has_time);
}

// x (B, H, S), or (B, H): any strides.
template <class T, class Session>
ViewOf<const T> gates_in(Session& session, const Tensor& x, bool has_time = true) {
  const ScalarType dtype = session.dtype_for(x);
  const Tensor& gates = x.scalar_type() == dtype ? x : session.keep(torch::stable::to(x, dtype));
  return view_of<const T>(session.in(gates), gates, has_time);
}

template <class T, class Session>
ViewOf<T> view_out(Session& session, const Tensor& x, bool has_time = true) {
  return view_of<T>(session.out(x), x, has_time);
}

// Memory laid out as x, (B, S, F); (B, F) is one token.
inline AnyView time_view(const void* data, const Tensor& x) {
  return {data, type_of(x), x.stride(0), 0, x.dim() == 3 ? x.stride(1) : 0};
}

// The same as kernels take and give it that know elements of every type on every backend.
template <class Session>
AnyView elements_in(Session& session, const Tensor& x, ScalarType dtype) {
  const Tensor& rows = kept(session, x, as(x, dtype));
  return time_view(session.in(rows), rows);
}
template <class Session>
AnyView elements_out(Session& session, const Tensor& x) {
  return time_view(session.out(x), x);
}

// The elements of x as they are.
template <class T, class Session>
const T* in_as(Session& session, const OptionalTensor& x) {
  return x ? static_cast<const T*>(session.in(*x)) : nullptr;
}
template <class T, class Session>
T* out_as(Session& session, const Tensor& x) {
  return static_cast<T*>(session.out(x));
}

// x as `dtype`, contiguous.
template <class T, class Session>
const T* contiguous_in(Session& session, const OptionalTensor& x, ScalarType dtype) {
  return x ? static_cast<const T*>(session.in(kept(session, *x, as_contiguous(*x, dtype)))) : nullptr;
}

// The same, of any type on a device.
template <class T, class Session>
PointerOf<const T> values_in(Session& session, const OptionalTensor& x) {
  if (!x) return {};
  const Tensor& values = kept(session, *x, as_contiguous(*x, session.dtype_for(*x)));
  if constexpr (std::is_void_v<T>)
    return {session.in(values), type_of(values)};
  else
    return static_cast<const T*>(session.in(values));
}

template <class Session>
Flags flags_in(Session& session, const OptionalTensor& x) {
  if (!x) return {};
  const Tensor& flags = kept(session, *x, as_contiguous(*x, ScalarType::Bool));
  return {static_cast<const bool*>(session.in(flags)), flags.stride(0), flags.stride(1)};
}

}  // namespace xlstm::ops
