#pragma once
// The namespace that a library registers its operators in: torch.ops.xlstm_cuda, or that of a test library.
#include "ops/common.h"

#ifndef XLSTM_NAMESPACE
#define XLSTM_NAMESPACE xlstm_cuda
#endif

// One more macro, so that the namespace is expanded before torch's macro pastes it.
#define XLSTM_EXPAND_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define XLSTM_EXPAND_LIBRARY_FRAGMENT(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define XLSTM_EXPAND_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define XLSTM_LIBRARY(m) XLSTM_EXPAND_LIBRARY(XLSTM_NAMESPACE, m)
#define XLSTM_LIBRARY_FRAGMENT(m) XLSTM_EXPAND_LIBRARY_FRAGMENT(XLSTM_NAMESPACE, m)
#define XLSTM_LIBRARY_IMPL(key, m) XLSTM_EXPAND_LIBRARY_IMPL(XLSTM_NAMESPACE, key, m)

// Where the ops on CUDA kernels are registered: for CUDA tensors, or for CPU tensors on the host executor.
#if defined(XLSTM_SIMT)
#define XLSTM_DEVICE_LIBRARY_IMPL(m) XLSTM_LIBRARY_IMPL(CPU, m)
#else
#define XLSTM_DEVICE_LIBRARY_IMPL(m) XLSTM_LIBRARY_IMPL(CUDA, m)
#endif
