// mma.sync, ldmatrix, stmatrix and movmatrix. Lane l of a warp is in group l / 4 and column pair l % 4 of the
// fragments.
#include <cstring>

#include "simt/collective.h"
#include "simt/element.h"
#include "simt/memory.h"
#include "simt/race.h"

namespace simt {
namespace {

using Row = float __attribute__((vector_size(32)));  // eight columns of B and D

struct MmaArgument {
  float* d;
  const uint32_t *a, *b;
};

// A (16 x kDepth) and B (kDepth x 8) from the lanes' registers.
template <Element kElement, int kDepth>
struct Operands {
  float a[16][kDepth];
  alignas(32) float b[kDepth][8];

  void take_lane(int lane, const MmaArgument& from) {
    const int group = lane / 4, pair = lane % 4;
    if constexpr (kElement == Element::tf32) {
      for (int r = 0; r < 4; ++r) a[group + 8 * (r & 1)][pair + 4 * (r >> 1)] = tf32_value(from.a[r]);
      for (int r = 0; r < 2; ++r) b[pair + 4 * r][group] = tf32_value(from.b[r]);
    } else {
      for (int r = 0; r < 4; ++r) {
        float* two = &a[group + 8 * (r & 1)][2 * pair + 8 * (r >> 1)];
        two[0] = half_value<kElement>(from.a[r]);
        two[1] = half_value<kElement>(from.a[r] >> 16);
      }
      for (int r = 0; r < 2; ++r) {
        b[2 * pair + 8 * r][group] = half_value<kElement>(from.b[r]);
        b[2 * pair + 8 * r + 1][group] = half_value<kElement>(from.b[r] >> 16);
      }
    }
  }
};

template <Element kElement>
void multiply(Thread** lanes) {
  ++stats().mma;
  constexpr int kDepth = kElement == Element::tf32 ? 8 : 16;
  Operands<kElement, kDepth> operands;
  alignas(32) float d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& argument = *static_cast<const MmaArgument*>(lanes[lane]->argument);
    operands.take_lane(lane, argument);
    std::memcpy(&d[lane / 4][2 * (lane % 4)], argument.d, 8);
    std::memcpy(&d[lane / 4 + 8][2 * (lane % 4)], argument.d + 2, 8);
  }
  Row b[kDepth];
  std::memcpy(b, operands.b, sizeof b);
  for (int i = 0; i < 16; ++i) {
    Row row;
    std::memcpy(&row, d[i], sizeof row);
    for (int k = 0; k < kDepth; ++k) row += b[k] * operands.a[i][k];
    std::memcpy(d[i], &row, sizeof row);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* to = static_cast<const MmaArgument*>(lanes[lane]->argument)->d;
    std::memcpy(to, &d[lane / 4][2 * (lane % 4)], 8);
    std::memcpy(to + 2, &d[lane / 4 + 8][2 * (lane % 4)], 8);
  }
}

struct MmaF64Argument {
  double* d[2];
  double a, b;
};

// A (8 x 4) and B (4 x 8): one element of each a lane.
void multiply_f64(Thread** lanes) {
  ++stats().mma;
  using Row = double __attribute__((vector_size(64)));  // eight columns of B and D
  alignas(64) double a[8][4], b[4][8], d[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& argument = *static_cast<const MmaF64Argument*>(lanes[lane]->argument);
    const int group = lane / 4, pair = lane % 4;
    a[group][pair] = argument.a;
    b[pair][group] = argument.b;
    for (int e = 0; e < 2; ++e) d[group][2 * pair + e] = *argument.d[e];
  }
  for (int i = 0; i < 8; ++i) {
    Row row, columns;
    std::memcpy(&row, d[i], sizeof row);
    for (int k = 0; k < 4; ++k) {
      std::memcpy(&columns, b[k], sizeof columns);
      row += columns * a[i][k];
    }
    std::memcpy(d[i], &row, sizeof row);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& argument = *static_cast<const MmaF64Argument*>(lanes[lane]->argument);
    for (int e = 0; e < 2; ++e) *argument.d[e] = d[lane / 4][2 * (lane % 4) + e];
  }
}

// An 8 x 8 matrix of 16-bit elements: one row an address, or a pair of elements a lane.
struct Matrix {
  uint16_t element[8][8];

  uint32_t lane_pair(int lane, bool transposed) const {
    const int group = lane / 4, column = 2 * (lane % 4);
    const uint32_t low = transposed ? element[column][group] : element[group][column];
    const uint32_t high = transposed ? element[column + 1][group] : element[group][column + 1];
    return low | high << 16;
  }
  void set_lane_pair(int lane, bool transposed, uint32_t pair) {
    const int group = lane / 4, column = 2 * (lane % 4);
    (transposed ? element[column][group] : element[group][column]) = static_cast<uint16_t>(pair);
    (transposed ? element[column + 1][group] : element[group][column + 1]) = static_cast<uint16_t>(pair >> 16);
  }
};

struct MatrixArgument {
  uint32_t* registers;
  uint32_t address;
};

MatrixArgument& matrix_argument(Thread* thread) {
  return *static_cast<MatrixArgument*>(thread->argument);
}

// Rows of a matrix that fall into the same banks cost a cycle each.
void count_conflicts(Thread** lanes, int matrices) {
  for (int m = 0; m < matrices; ++m) {
    uint8_t rows_in_banks[8] = {}, most = 1;
    for (int row = 0; row < 8; ++row) {
      const uint32_t banks = matrix_argument(lanes[8 * m + row]).address / 16 % 8;
      most = std::max(most, ++rows_in_banks[banks]);
    }
    stats().bank_conflicts += most - 1;
  }
}

// The row of 16 bytes that a lane addresses, accessed on that lane's behalf.
uint8_t* access_row(Thread* lane, Access access, Source where) {
  const Impersonate impersonate(lane);
  uint8_t* row = resolve_aligned(matrix_argument(lane).address, 16, where);
  record(row, 16, access, where);
  return row;
}

uint32_t whole_warp(Source where) {
  if (full_mask() != ~0u) fault(where, "a tensor-core or matrix instruction in a warp of fewer than 32 threads");
  return ~0u;
}

void check_count(int matrices, Source where) {
  if (matrices != 1 && matrices != 2 && matrices != 4) fault(where, "a matrix instruction of %d matrices", matrices);
}

}  // namespace

void mma(Element element, float* d, const uint32_t* a, const uint32_t* b, Source where) {
  require_capability(80, "mma.sync", where);
  MmaArgument argument{d, a, b};
  const auto work = element == Element::bf16  ? multiply<Element::bf16>
                    : element == Element::f16 ? multiply<Element::f16>
                                              : multiply<Element::tf32>;
  collective(kMma + static_cast<int>(element), whole_warp(where), &argument, "mma.sync", where, work);
}

void mma_f64(double& d0, double& d1, double a, double b, Source where) {
  require_capability(80, "mma.sync", where);
  MmaF64Argument argument{{&d0, &d1}, a, b};
  collective(kMma + 8, whole_warp(where), &argument, "mma.sync", where, multiply_f64);
}

void ldmatrix(int matrices, bool transposed, uint32_t* registers, uint32_t address, Source where) {
  check_count(matrices, where);
  MatrixArgument argument{registers, address};
  collective(kLdmatrix + 2 * matrices + transposed, whole_warp(where), &argument, "ldmatrix", where,
             [=](Thread** lanes) {
               ++stats().ldmatrix;
               count_conflicts(lanes, matrices);
               for (int m = 0; m < matrices; ++m) {
                 Matrix matrix;
                 for (int row = 0; row < 8; ++row) {
                   std::memcpy(matrix.element[row], access_row(lanes[8 * m + row], Access::read, where), 16);
                 }
                 for (int lane = 0; lane < 32; ++lane) {
                   matrix_argument(lanes[lane]).registers[m] = matrix.lane_pair(lane, transposed);
                 }
               }
             });
}

void stmatrix(int matrices, bool transposed, const uint32_t* registers, uint32_t address, Source where) {
  require_capability(90, "stmatrix", where);
  check_count(matrices, where);
  MatrixArgument argument{const_cast<uint32_t*>(registers), address};
  collective(kStmatrix + 2 * matrices + transposed, whole_warp(where), &argument, "stmatrix", where,
             [=](Thread** lanes) {
               count_conflicts(lanes, matrices);
               for (int m = 0; m < matrices; ++m) {
                 Matrix matrix;
                 for (int lane = 0; lane < 32; ++lane) {
                   matrix.set_lane_pair(lane, transposed, matrix_argument(lanes[lane]).registers[m]);
                 }
                 for (int row = 0; row < 8; ++row) {
                   std::memcpy(access_row(lanes[8 * m + row], Access::write, where), matrix.element[row], 16);
                 }
               }
             });
}

uint32_t movmatrix_transposed(uint32_t value, Source where) {
  collective(kMovmatrix, whole_warp(where), &value, "movmatrix", where, [](Thread** lanes) {
    Matrix matrix;
    for (int lane = 0; lane < 32; ++lane) {
      matrix.set_lane_pair(lane, false, *static_cast<uint32_t*>(lanes[lane]->argument));
    }
    for (int lane = 0; lane < 32; ++lane) *static_cast<uint32_t*>(lanes[lane]->argument) = matrix.lane_pair(lane, true);
  });
  return value;
}

}  // namespace simt
