#pragma once
// Tensor maps for TMA, made by host code. The driver's function is looked up at run time: nothing links libcuda.
#include "cuda/device/platform.h"

namespace xlstm::device {

template <class T>
constexpr CUtensorMapDataType kTensorMapType = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
template <>
inline constexpr CUtensorMapDataType kTensorMapType<__nv_bfloat16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
template <>
inline constexpr CUtensorMapDataType kTensorMapType<__half> = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// Null where the driver has none.
inline EncodeTensorMap encode_tensor_map() {
#if XLSTM_SIMT
  return cuTensorMapEncodeTiled;
#else
  static const EncodeTensorMap function = [] {
    void* pointer = nullptr;
    cudaDriverEntryPointQueryResult result;
    constexpr unsigned kCuda12 = 12000;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &pointer, kCuda12, cudaEnableDefault, &result);
    return error == cudaSuccess ? reinterpret_cast<EncodeTensorMap>(pointer) : nullptr;
  }();
  return function;
#endif
}

// A dense tile of a row-major tensor of kDims dimensions, innermost first; strides in elements, innermost 1 and left
// out.
template <int kDims>
struct TensorMapShape {
  uint64_t size[kDims];
  uint64_t stride[kDims > 1 ? kDims - 1 : 1];
  uint32_t box[kDims];
};

template <class T, int kDims>
CUresult make_tensor_map(CUtensorMap* map, T* data, const TensorMapShape<kDims>& shape, CUtensorMapSwizzle swizzle) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 2);
  cuuint64_t size[kDims], stride_bytes[kDims] = {};
  cuuint32_t box[kDims], element_strides[kDims];
  for (int i = 0; i < kDims; ++i) {
    size[i] = shape.size[i];
    box[i] = shape.box[i];
    element_strides[i] = 1;
    if (i + 1 < kDims) stride_bytes[i] = shape.stride[i] * sizeof(T);
  }
  const EncodeTensorMap encode = encode_tensor_map();
  if (!encode) return CUDA_ERROR_NOT_SUPPORTED;
  return encode(map, kTensorMapType<T>, kDims, data, size, stride_bytes, box, element_strides,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace xlstm::device
