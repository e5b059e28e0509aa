// Which kernel computes an output, and how it is cut into blocks: those of outputs_kernel.h, or that of
// outputs_wgmma.cu.
#include "cuda/mlstm_chunkwise/outputs_instances.h"
#include "cuda/mlstm_chunkwise/outputs_wgmma.h"

namespace xlstm::cuda {
namespace {

constexpr int kTile = 64;  // tokens and columns

// Blocks of 64 columns that a kernel keeps in registers: every column tile computes the scores again.
int max_blocks(Product product) {
  switch (product) {
    case Product::bf16:
      return 4;
    case Product::tf32:
    case Product::tf32x3:
      return 2;
    case Product::f64:
      return 1;
  }
  XLSTM_UNREACHABLE;
}

// What is tried first. With chunks of 64 tokens half of the warpgroups that wgmma takes would have no rows.
bool prefers_wgmma(Product product, OutputsKernel kernel, int chunk_size) {
  switch (kernel) {
    case OutputsKernel::best:
      return product == Product::bf16 && chunk_size > kTile;
    case OutputsKernel::mma:
      return false;
    case OutputsKernel::wgmma:
      return true;
  }
  XLSTM_UNREACHABLE;
}

int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

OutputsTiling make_tiling(Product product, int64_t columns, const MlstmShape& shape, int chunk_size) {
  const int64_t blocks = ceil_div(columns, kTile), tiles = mlstm_outputs_column_tiles(product, columns);
  OutputsTiling tiling;
  tiling.slots = static_cast<int>(chunk_slots(shape, chunk_size));
  tiling.row_tiles = chunk_size / kTile;
  tiling.column_tiles = static_cast<int>(tiles);
  tiling.blocks = static_cast<int>(ceil_div(blocks, tiles));
  tiling.resident = false;  // known where the kernel's shared memory is
  return tiling;
}

}  // namespace

int64_t mlstm_outputs_column_tiles(Product product, int64_t columns) {
  return ceil_div(ceil_div(columns, kTile), max_blocks(product));
}

template <class A>
cudaError_t mlstm_outputs(const MlstmOutputsParams<A>& p, cudaStream_t stream) {
  const bool good = p.chunk_size == 64 || p.chunk_size == 128 || p.chunk_size == 256;
  if (!good || p.shape.seqlen > INT32_MAX) return cudaErrorInvalidValue;
  const bool by_v = p.output == OutputKind::h || p.output == OutputKind::dv;
  const int64_t columns = by_v ? p.shape.head_dim_v : p.shape.head_dim_qk;
  const OutputsTiling tiling = make_tiling(p.product, columns, p.shape, p.chunk_size);
  if constexpr (sizeof(A) == sizeof(double)) {
    return p.product == Product::f64 ? outputs_f64(p, tiling, stream) : cudaErrorInvalidValue;
  } else {
    cudaError_t error = cudaSuccess;
    if (prefers_wgmma(p.product, p.kernel, p.chunk_size) && outputs_wgmma(p, tiling, stream, error)) return error;
    if (p.kernel == OutputsKernel::wgmma) return cudaErrorInvalidValue;
    switch (p.product) {
      case Product::bf16:
        return outputs_bf16(p, tiling, stream);
      case Product::tf32:
        return outputs_tf32(p, tiling, stream);
      case Product::tf32x3:
        return outputs_tf32x3(p, tiling, stream);
      case Product::f64:
        break;
    }
    return cudaErrorInvalidValue;
  }
}

template cudaError_t mlstm_outputs<float>(const MlstmOutputsParams<float>&, cudaStream_t);
template cudaError_t mlstm_outputs<double>(const MlstmOutputsParams<double>&, cudaStream_t);

}  // namespace xlstm::cuda
