// The Python module _C: what the library was built with. Importing it registers torch.ops.xlstm_cuda.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels.h"

#define XLSTM_TEXT_(x) #x
#define XLSTM_TEXT(x) XLSTM_TEXT_(x)

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = XLSTM_VERSION;
  info["torch"] = XLSTM_TORCH_VERSION;
  info["compiler"] = XLSTM_COMPILER;
#if defined(XLSTM_CUDA_ARCHS)
  info["cuda"] = XLSTM_CUDA_VERSION;
  info["cuda_archs"] = pybind11::str(XLSTM_CUDA_ARCHS).attr("split")(",");
#else
  info["cuda"] = pybind11::none();
  info["cuda_archs"] = pybind11::list();
#endif
  info["simd"] = xlstm::cpu::simd_level();
  info["simd_levels"] = xlstm::cpu::simd_levels();
  return info;
}

}  // namespace

// It needs no GIL: what it and the ops keep is constant, atomic, or belongs to a thread.
PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  xlstm::cpu::simd_level();  // a wrong XLSTM_SIMD fails the import, with its own message
  m.def("build_info", &build_info,
        "What this library was built with: version, torch, compiler, cuda (None without CUDA kernels), cuda_archs, "
        "simd (CPU level in use) and simd_levels.");
}
