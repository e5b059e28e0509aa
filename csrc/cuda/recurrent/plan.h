#pragma once
// How a scan over time is cut into blocks, and how these tell each other about a step: a pure function of the shape and
// of the device (docs/kernels/recurrent.md).
#include <optional>
#include <vector>

#include "core/recurrent.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// The place where the R of a head stays, and the way of h (backward: of partial sums of dh, in a grid of d raw) from
// block to block.
enum class Variant {
  block,    // R in one block, h in its shared memory
  cluster,  // R in the blocks of a cluster, which write into each other's shared memory
  grid,     // R in blocks of a cooperative grid, which talk through L2
  launch    // R read anew by a launch per step: fits everything
};

struct RecurrentDevice {
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  int max_cluster;  // 1 where there are none
};

constexpr int kBatchTile = 8;       // rows that are multiplied together
constexpr int kWeightSteps = 16;    // steps of Fragments<T>::kDepth that a warp keeps: 128 registers
constexpr int kResidentUnits = 64;  // of a block of 8 warps, where each takes 8 units and the whole of a row of R
constexpr int kWideUnits = 128;     // of a block of 16 warps with half as many registers each

// The longest row of R that blocks of so many units keep; fewer units: more warps share a row.
constexpr int64_t resident_head_dim(int depth, int units) {
  return int64_t{kWeightSteps} * depth * (kResidentUnits / units);
}

// Batch tiles that a team can carry.
constexpr int max_tiles(Variant variant) {
  return variant == Variant::grid ? 8 : 2;
}

struct RecurrentPlan {
  Variant variant;
  int units;              // hidden units of a block
  int blocks;             // of a team: they share a head and have all of its units
  int teams;              // per head: team k takes the batch tiles k, k + teams, .. together, step by step
  int tiles;              // of a team at most
  int rows = kBatchTile;  // of a batch tile, even: fewer where all teams have one tile and there is room for more teams
  int rounds = 1;         // launches of a grid, one after the other: its blocks must all be there at once
  int first_team = 0;     // of a launch, among those of all heads

  // Of a launch, at most.
  int64_t teams_at_once(const RecurrentShape& shape) const {
    const int64_t all = teams * shape.num_heads;
    return (all + rounds - 1) / rounds;
  }
};

enum class Direction { forward, backward };

// What tests and measurements ask for; none or 0: as planned.
struct PlanRequest {
  std::optional<Variant> variant;
  int units = 0, teams = 0;
};

// The plans that fit, one for each variant, best first. The last one is a launch per step. A device may still refuse
// one at its launch.
std::vector<RecurrentPlan> recurrent_plans(const RecurrentShape& shape, Type type, const RecurrentDevice& device,
                                           Direction direction, const PlanRequest& request = {});

const char* name_of(Variant variant);

}  // namespace xlstm::cuda
