#pragma once
// How the chunkwise mLSTM multiplies matrices. The elements of its tiles and of the states it stores per chunk are of
// the product's element type; sums, n and gate vectors are double for f64, else float.
#include "cuda/types.h"

namespace xlstm::cuda {

enum class Product {
  bf16,    // bf16 data
  tf32,    // one pass: f32 data where TF32 is allowed; f16 data, each of which is a tf32
  tf32x3,  // three passes over big and small parts: f32 data, relative errors of about 2^-22
  f64      // f64 data
};

// What a kernel multiplies by.
enum class TensorCores {
  mma,   // mma.sync: every GPU, every product
  wgmma  // wgmma on tiles that TMA brings: compute capability 9.0, bf16
};

XLSTM_HOST_DEVICE constexpr Type element_type(Product product) {
  switch (product) {
    case Product::bf16:
      return Type::bf16;
    case Product::tf32:
    case Product::tf32x3:
      return Type::f32;
    case Product::f64:
      return Type::f64;
  }
  XLSTM_UNREACHABLE;
}

// How data of this type are multiplied.
constexpr Product product_of(Type data, bool allow_tf32) {
  switch (data) {
    case Type::bf16:
      return Product::bf16;
    case Type::f16:
      return Product::tf32;
    case Type::f32:
      return allow_tf32 ? Product::tf32 : Product::tf32x3;
    case Type::f64:
      return Product::f64;
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
