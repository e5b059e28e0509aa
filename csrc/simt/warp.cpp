// Shuffles, votes and __syncwarp.
#include <algorithm>

#include "simt/collective.h"
#include "simt/race.h"

namespace simt {
namespace {

struct ShuffleArgument {
  uint64_t value;
  int lane, width;
  uint64_t result;
};

int source_lane(Shuffle shuffle, int self, int lane, int width) {
  const int first = self & ~(width - 1), end = first + width;
  switch (shuffle) {
    case Shuffle::index:
      return first + (lane & (width - 1));
    case Shuffle::up:
      return self - lane < first ? self : self - lane;
    case Shuffle::down:
      return self + lane >= end ? self : self + lane;
    case Shuffle::exclusive_or:
      return (self ^ lane) >= end ? self : self ^ lane;
  }
  __builtin_unreachable();
}

struct VoteArgument {
  uint32_t value, result;
};

uint32_t combine(Vote vote, uint32_t a, uint32_t b) {
  switch (vote) {
    case Vote::add:
      return a + b;
    case Vote::min:
      return std::min(a, b);
    case Vote::max:
      return std::max(a, b);
    case Vote::bit_and:
      return a & b;
    case Vote::bit_or:
      return a | b;
    case Vote::bit_xor:
      return a ^ b;
    case Vote::ballot:
    case Vote::match_any:
      break;  // not made of pairs
  }
  __builtin_unreachable();
}

VoteArgument& vote_argument(Thread* thread) {
  return *static_cast<VoteArgument*>(thread->argument);
}

void count_votes(Vote vote, uint32_t mask, Thread** lanes) {
  if (vote == Vote::match_any) {
    for_each_lane(mask, [&](int lane) {
      VoteArgument& mine = vote_argument(lanes[lane]);
      for_each_lane(mask, [&](int other) {
        if (vote_argument(lanes[other]).value == mine.value) mine.result |= 1u << other;
      });
    });
    return;
  }
  uint32_t result = 0;
  bool first = true;
  for_each_lane(mask, [&](int lane) {
    const uint32_t value = vote_argument(lanes[lane]).value;
    if (vote == Vote::ballot) {
      result |= (value & 1) << lane;
    } else {
      result = first ? value : combine(vote, result, value);
    }
    first = false;
  });
  for_each_lane(mask, [&](int lane) { vote_argument(lanes[lane]).result = result; });
}

}  // namespace

void syncwarp(uint32_t mask, Source where) {
  mask &= full_mask();
  collective(kSyncwarp, mask, nullptr, "__syncwarp", where, [mask](Thread** lanes) {
    if (!machine.races) return;
    Released released;
    for_each_lane(mask, [&](int lane) {
      released.add(lanes[lane]->view);
      tick(*lanes[lane]);
    });
    const SnapshotRef knowledge = released.take();
    for_each_lane(mask, [&](int lane) { acquire_view(*lanes[lane], knowledge); });
  });
}

uint64_t shuffle(Shuffle shuffle, uint32_t mask, uint64_t value, int lane, int width, Source where) {
  ++stats().shuffles;
  ShuffleArgument argument{value, lane, width, 0};
  const int kind = kShuffle + static_cast<int>(shuffle);
  collective(kind, mask, &argument, "shfl.sync", where, [=](Thread** lanes) {
    for_each_lane(mask, [&](int self) {
      auto& mine = *static_cast<ShuffleArgument*>(lanes[self]->argument);
      const int from = source_lane(shuffle, self, mine.lane, mine.width);
      if (!(mask >> from & 1))
        fault(where, "shfl.sync: lane %d reads lane %d, which the mask 0x%x lacks", self, from, mask);
      mine.result = static_cast<ShuffleArgument*>(lanes[from]->argument)->value;
    });
  });
  return argument.result;
}

uint32_t vote(Vote vote, uint32_t mask, uint32_t value, Source where) {
  VoteArgument argument{value, 0};
  collective(kVote + static_cast<int>(vote), mask, &argument, "vote, match or redux.sync", where,
             [=](Thread** lanes) { count_votes(vote, mask, lanes); });
  return argument.result;
}

Elected elect(uint32_t mask, Source where) {
  uint32_t chosen = 0;
  collective(kElect, mask, &chosen, "elect.sync", where, [=](Thread** lanes) {
    // The ISA leaves it open which lane it is, and promises the same one for the same mask.
    Random random;
    random.seed(options().seed ^ uint64_t{mask} << 32);
    uint32_t left = mask;
    for (uint32_t skipped = random.below(__builtin_popcount(mask)); skipped; --skipped) left &= left - 1;
    for_each_lane(mask, [&](int lane) { *static_cast<uint32_t*>(lanes[lane]->argument) = __builtin_ctz(left); });
  });
  return {chosen, chosen == machine.running->lane};
}

}  // namespace simt
