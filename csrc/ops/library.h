#pragma once
// How an op is registered: in the namespace of its library (torch.ops.xlstm_cuda, or that of a test library) and for
// the backends of that library. The body of an op is a template over its session: ops/backends.
#include "ops/arguments.h"
#if defined(XLSTM_SIMT)
#include "ops/backends/device.h"
#elif defined(XLSTM_CUDA_ARCHS)
#include "ops/backends/cpu.h"
#include "ops/backends/device.h"
#else
#include "ops/backends/cpu.h"
#endif

#ifndef XLSTM_NAMESPACE
#define XLSTM_NAMESPACE xlstm_cuda
#endif

// One more macro, so that the namespace is expanded before torch's macro pastes it.
#define XLSTM_EXPAND_LIBRARY_FRAGMENT(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define XLSTM_EXPAND_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define XLSTM_LIBRARY_FRAGMENT(m) XLSTM_EXPAND_LIBRARY_FRAGMENT(XLSTM_NAMESPACE, m)
#define XLSTM_LIBRARY_IMPL(key, m) XLSTM_EXPAND_LIBRARY_IMPL(XLSTM_NAMESPACE, key, m)

// The body of op `name` for one session: a template of that name.
#define XLSTM_IMPLEMENT(key, name, Session) \
  XLSTM_LIBRARY_IMPL(key, m) {              \
    m.impl(#name, &boxed<name<Session>>);   \
  }

#if defined(XLSTM_SIMT)  // the executor of CUDA kernels takes tensors on the CPU
#define XLSTM_IMPLEMENT_ALL(name) XLSTM_IMPLEMENT(CPU, name, DeviceSession)
#elif defined(XLSTM_CUDA_ARCHS)
#define XLSTM_IMPLEMENT_ALL(name)        \
  XLSTM_IMPLEMENT(CPU, name, CpuSession) \
  XLSTM_IMPLEMENT(CUDA, name, DeviceSession)
#else
#define XLSTM_IMPLEMENT_ALL(name) XLSTM_IMPLEMENT(CPU, name, CpuSession)
#endif

// An op for every backend, or for a CPU only. No op on tensors takes a string: torch's stable ABI never frees the copy
// that it makes of one. What has a name has a number in xlstm_cuda/_ops.py.
#define XLSTM_DEFINE(name, arguments, results)  \
  XLSTM_LIBRARY_FRAGMENT(m) {                   \
    m.def(#name "(" arguments ") -> " results); \
  }
#define XLSTM_OP(name, arguments, results) \
  XLSTM_DEFINE(name, arguments, results)   \
  XLSTM_IMPLEMENT_ALL(name)
#define XLSTM_CPU_OP(name, arguments, results) \
  XLSTM_DEFINE(name, arguments, results)       \
  XLSTM_IMPLEMENT(CPU, name, CpuSession)
