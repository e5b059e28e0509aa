#include "simt/tensor_map.h"

#include <cstring>

#include "simt/fault.h"

namespace simt {
namespace {

constexpr uint32_t kMagic = 0x54656e73;
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

int element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ:
      return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

// What the driver would refuse.
bool valid(const TensorMap& map) {
  if (!map.element_bytes || map.dims < 1 || map.dims > kMaxDims || reinterpret_cast<uintptr_t>(map.base) % 16)
    return false;
  for (int d = 0; d < map.dims; ++d) {
    if (!map.size[d] || map.size[d] > uint64_t{1} << 32 || !map.box[d] || map.box[d] > 256) return false;
    if (d && (map.stride[d] % 16 || map.stride[d] >= uint64_t{1} << 40)) return false;
  }
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  return row_bytes % 16 == 0 && (!map.swizzle_bits || row_bytes <= 16u << map.swizzle_bits);
}

}  // namespace

TensorMap decode(const CUtensorMap* descriptor, int dims, Source where) {
  TensorMap map;
  std::memcpy(&map, descriptor, sizeof map);
  if (map.magic != kMagic) fault(where, "TMA: the descriptor was not made by cuTensorMapEncodeTiled");
  if (map.dims != dims) fault(where, "TMA: an instruction of rank %d with a descriptor of rank %d", dims, map.dims);
  return map;
}

uint32_t tile_bytes(const TensorMap& map) {
  uint32_t bytes = map.element_bytes;
  for (int d = 0; d < map.dims; ++d) bytes *= map.box[d];
  return bytes;
}

}  // namespace simt

extern "C" __attribute__((visibility("hidden"))) CUresult cuTensorMapEncodeTiled(
    CUtensorMap* descriptor, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* size,
    const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* element_stride, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  if (rank < 1 || rank > simt::kMaxDims || swizzle > CU_TENSOR_MAP_SWIZZLE_128B) return CUDA_ERROR_INVALID_VALUE;
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  simt::TensorMap map{};
  map.magic = simt::kMagic;
  map.dims = static_cast<uint8_t>(rank);
  map.element_bytes = static_cast<uint8_t>(simt::element_bytes(type));
  map.swizzle_bits = static_cast<uint8_t>(swizzle);
  map.base = static_cast<uint8_t*>(base);
  for (uint32_t d = 0; d < rank; ++d) {
    if (element_stride[d] != 1) return CUDA_ERROR_NOT_SUPPORTED;
    map.box[d] = box[d];
    map.size[d] = size[d];
    map.stride[d] = d ? stride[d - 1] : map.element_bytes;
  }
  if (!simt::valid(map)) return CUDA_ERROR_INVALID_VALUE;
  std::memset(descriptor, 0, sizeof *descriptor);
  std::memcpy(descriptor, &map, sizeof map);
  return CUDA_SUCCESS;
}
