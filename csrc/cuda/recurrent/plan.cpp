#include "cuda/recurrent/plan.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace xlstm::cuda {
namespace {

int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

constexpr int64_t kClusterRoom = 16;
constexpr int kMostRounds = 1000;  // of a grid's launches
// By how much a cut of a variant into more blocks has to be faster: it leaves less room for others, also for teams of
// fewer rows. And a grid: it needs all of its blocks at once, beside whatever else runs.
constexpr double kMoreBlocks = 1.15, kGrid = 1.25;

// Along a row of R, of one product: Fragments<T>::kDepth.
int depth_of(Type type) {
  switch (type) {
    case Type::bf16:
    case Type::f16:
      return 16;
    case Type::f32:
      return 8;
    case Type::f64:
      return 4;
  }
  XLSTM_UNREACHABLE;
}

// A thread block cluster lies within one group of multiprocessors of the chip: an H200 has seven with 16 or 18 of its
// 132, and a smaller one. Those that are too few for one more cluster stay idle.
int64_t teams_at_once(Variant variant, int64_t blocks, const RecurrentDevice& device) {
  if (variant != Variant::cluster) return device.multiprocessors / blocks;
  const int64_t groups = device.multiprocessors / kClusterRoom;
  return (groups > 1 ? groups - 1 : groups) * (kClusterRoom / blocks);
}

// Nanoseconds of a step of a whole batch tile on an H200, up to so many blocks (bench/results/h200-2026-11-29). What
// counts is which of two is smaller: tests/kernels/test_recurrent_plan.py compares the choices with what was measured.
// Those of a grid, backward, are of blocks that sent each other sums of dh. Since they gather d raw none was measured.
struct StepTime {
  Variant variant;
  int units, blocks, forward, backward;
};
constexpr StepTime kStepTimes[] = {
    {Variant::block, 64, 1, 641, 762},      {Variant::block, 128, 1, 1532, 1582},
    {Variant::cluster, 64, 2, 1005, 1267},  {Variant::cluster, 64, 4, 1246, 1471},
    {Variant::cluster, 32, 4, 1058, 1217},  {Variant::cluster, 32, 8, 1224, 1318},
    {Variant::cluster, 32, 16, 1154, 1500},  // of two rows
    {Variant::grid, 64, 16, 1798, 2055},    {Variant::grid, 32, 16, 1704, 2018},
    {Variant::grid, 16, 16, 1663, 1982},    {Variant::grid, 16, 64, 1875, 3192},
};

// Of a step of all batch tiles of a head: teams that find no room take their turn after others.
double time_of(const RecurrentPlan& plan, const RecurrentShape& shape, const RecurrentDevice& device,
               Direction direction) {
  const auto* step = std::find_if(std::begin(kStepTimes), std::end(kStepTimes), [&](const StepTime& of) {
    return of.variant == plan.variant && of.units == plan.units && plan.blocks <= of.blocks;
  });
  const int64_t at_once = std::max<int64_t>(teams_at_once(plan.variant, plan.blocks, device), 1);
  const double rounds = std::ceil(static_cast<double>(plan.teams) * shape.num_heads / at_once);
  return rounds * plan.tiles * (direction == Direction::forward ? step->forward : step->backward);
}

// The same of a launch per step: R from L2 once for every 32 rows, and what a launch takes.
double time_of_launches(const RecurrentShape& shape, Type type) {
  constexpr double kLaunch = 7600, kBytesPerNanosecond = 5500;
  constexpr int64_t kRows = 32;
  const double bytes = 4.0 * shape.num_heads * shape.head_dim * shape.head_dim * bytes_of(type);
  return kLaunch + ceil_div(shape.batch, kRows) * bytes / kBytesPerNanosecond;
}

// As many teams as the device has room for at a time, and more, one after the other, where one cannot carry all of its
// tiles. Where there is room for more teams than there are tiles, a tile has fewer rows, which move sooner. Blocks of a
// grid wait for each other, so that those of a launch must be there at once: zero teams where there is no room for one.
RecurrentPlan with_teams(Variant variant, int units, int wanted, const RecurrentShape& shape,
                         const RecurrentDevice& device) {
  const int64_t blocks = ceil_div(shape.head_dim, units), tiles = ceil_div(shape.batch, kBatchTile);
  const int64_t at_once = teams_at_once(variant, blocks, device);
  if (variant == Variant::grid && at_once == 0) return {variant, units, static_cast<int>(blocks), 0, 0};
  const int64_t room = wanted > 0 ? wanted : std::max<int64_t>(at_once / shape.num_heads, 1);
  // An even number: a lane has two rows, whose code nvcc may round differently, and a row stays what it is, first or
  // second.
  const int64_t rows = room < tiles ? kBatchTile : 2 * ceil_div(shape.batch, 2 * room);
  int64_t teams = std::min(room, ceil_div(shape.batch, rows));
  if (ceil_div(tiles, teams) > max_tiles(variant)) teams = ceil_div(tiles, max_tiles(variant));
  RecurrentPlan plan = {variant, units, static_cast<int>(blocks), static_cast<int>(teams),
                        static_cast<int>(ceil_div(tiles, teams))};
  plan.rows = static_cast<int>(rows);
  if (variant == Variant::grid) {
    const double rounds = std::ceil(static_cast<double>(teams) * shape.num_heads / at_once);
    if (rounds > kMostRounds) plan.teams = 0;
    plan.rounds = static_cast<int>(std::min(rounds, double{kMostRounds}));
  }
  return plan;
}

// The units of blocks that there are kernels for, fewest blocks first.
std::vector<int> units_of(Variant variant, Type type, const RecurrentShape& shape, const RecurrentDevice& device) {
  const int64_t D = shape.head_dim;
  if (variant == Variant::block) {
    if (D <= kResidentUnits) return {kResidentUnits};
    if (D <= kWideUnits && depth_of(type) == 16) return {kWideUnits};
    return {};
  }
  std::vector<int> units;
  if (variant == Variant::cluster && device.max_cluster < 2) return units;  // not even of one block: no such kernels
  const int most = variant == Variant::cluster ? device.max_cluster : device.multiprocessors;
  for (int x : {64, 32, 16}) {
    const bool fits = D <= resident_head_dim(depth_of(type), x) && ceil_div(D, x) <= most;
    // 16 units in a cluster would be 64 blocks
    if (type != Type::f64 && fits && (variant == Variant::grid || x > 16)) units.push_back(x);
  }
  return units;
}

}  // namespace

std::vector<RecurrentPlan> recurrent_plans(const RecurrentShape& shape, Type type, const RecurrentDevice& device,
                                           Direction direction, const PlanRequest& request) {
  std::vector<RecurrentPlan> plans;
  if (shape.batch == 0) return plans;
  const auto asked_for = [&](Variant variant) { return request.variant.value_or(variant) == variant; };
  const auto cost = [&](const RecurrentPlan& plan) {
    return time_of(plan, shape, device, direction) * (plan.variant == Variant::grid ? kGrid : 1);
  };
  const auto faster = [&](const RecurrentPlan& a, const RecurrentPlan& b) { return cost(a) < cost(b); };
  for (Variant variant : {Variant::block, Variant::cluster, Variant::grid}) {
    // Heads that one block of few units holds gain nothing from several, unless somebody wants to see it.
    if (!asked_for(variant) || (variant != Variant::block && shape.head_dim <= kResidentUnits && !request.units))
      continue;
    std::optional<RecurrentPlan> best;
    for (int units : units_of(variant, type, shape, device)) {
      if (request.units && units != request.units) continue;
      const RecurrentPlan plan = with_teams(variant, units, request.teams, shape, device);
      const bool slow = variant == Variant::grid && !request.variant && plan.teams > 0 &&
                        time_of(plan, shape, device, direction) > time_of_launches(shape, type);
      if (plan.teams > 0 && !slow && (!best || cost(plan) * kMoreBlocks < cost(*best))) best = plan;
    }
    if (best) plans.push_back(*best);
  }
  std::stable_sort(plans.begin(), plans.end(), faster);
  if (asked_for(Variant::launch)) plans.push_back({Variant::launch, 0, 0, 0, 0});
  return plans;
}

const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::block:
      return "block";
    case Variant::cluster:
      return "cluster";
    case Variant::grid:
      return "grid";
    case Variant::launch:
      return "launch";
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cuda
