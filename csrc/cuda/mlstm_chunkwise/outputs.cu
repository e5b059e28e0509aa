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

int64_t columns_of(OutputKind output, const MlstmShape& shape) {
  return output == OutputKind::h || output == OutputKind::dv ? shape.head_dim_v : shape.head_dim_qk;
}

int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

int blocks_of_tile(Product product, int64_t columns) {
  return static_cast<int>(ceil_div(ceil_div(columns, kTile), mlstm_outputs_column_tiles(product, columns)));
}

OutputsTiling make_tiling(Product product, int64_t columns, const MlstmShape& shape, int chunk_size) {
  OutputsTiling tiling;
  tiling.slots = static_cast<int>(chunk_slots(shape, chunk_size));
  tiling.row_tiles = chunk_size / kTile;
  tiling.column_tiles = static_cast<int>(mlstm_outputs_column_tiles(product, columns));
  tiling.blocks = blocks_of_tile(product, columns);
  tiling.resident = false;  // known where the kernel's shared memory is
  return tiling;
}

}  // namespace

int64_t mlstm_outputs_column_tiles(Product product, int64_t columns) {
  return ceil_div(ceil_div(columns, kTile), max_blocks(product));
}

bool outputs_wgmma_takes(OutputKind output, const MlstmShape& shape, size_t room) {
  return outputs_wgmma_takes(output, shape, blocks_of_tile(Product::bf16, columns_of(output, shape)), room);
}

template <class A>
cudaError_t mlstm_outputs(const MlstmOutputsParams<A>& p, cudaStream_t stream) {
  const bool good = p.chunk_size == 64 || p.chunk_size == 128 || p.chunk_size == 256;
  if (!good || p.shape.seqlen > INT32_MAX) return cudaErrorInvalidValue;
  const OutputsTiling tiling = make_tiling(p.product, columns_of(p.output, p.shape), p.shape, p.chunk_size);
  if constexpr (sizeof(A) == sizeof(double)) {
    return p.product == Product::f64 ? outputs_f64(p, tiling, stream) : cudaErrorInvalidValue;
  } else {
    if (p.by == TensorCores::wgmma) {
      return p.product == Product::bf16 ? outputs_wgmma(p, tiling, stream) : cudaErrorInvalidValue;
    }
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
