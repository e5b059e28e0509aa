#include "simt/race.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <unordered_set>

#include "simt/fault.h"
#include "simt/scheduler.h"

namespace simt {
namespace {

// An access in 64 bits: serial of the domain, agent, async proxy, atomic, clock of the agent. Zero: none.
using Epoch = uint64_t;
constexpr int kClockBits = 22, kAgentBits = 16, kSerialBits = 24;
constexpr Epoch kAtomic = Epoch{1} << kClockBits, kAsync = kAtomic << 1;
constexpr int kAgentShift = kClockBits + 2, kSerialShift = kAgentShift + kAgentBits;
static_assert(kSerialShift + kSerialBits == 64);

uint32_t clock_of(Epoch e) {
  return e & ((1u << kClockBits) - 1);
}
uint32_t agent_of(Epoch e) {
  return e >> kAgentShift & ((1u << kAgentBits) - 1);
}
uint32_t serial_part(Epoch e) {
  return e >> kSerialShift;
}

// The history of a granule of two bytes: its last write and some reads since, with their places in the source.
constexpr size_t kGranule = 2;
constexpr int kSlots = 4;  // the first is the write
struct Cell {
  Epoch access[kSlots];
  bool operator==(const Cell&) const = default;
};
struct Sites {
  Site access[kSlots];
};

Cell* cells;
Sites* sites;
uint64_t* written;  // one bit a granule of global memory
uint32_t next_serial = 1, first_serial = 1;

// Of the launch. Lines are looked up when it has ended, on a stack that is large enough.
struct Report {
  std::string access;
  Site site;
  std::string earlier;  // empty: there is none
  Site earlier_site;
};
std::vector<Report> reports;
std::unordered_set<uint64_t> reported;

template <class T>
T* reserve_shadow(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("simt: cannot reserve address space for the race detector");
  return static_cast<T*>(memory);
}

size_t global_granule(const void* pointer) {
  return (arena_offset(pointer) - kSharedBytes) / kGranule;
}

// Sets or clears the written bits of granules [first, last).
void set_written(size_t first, size_t last, bool value) {
  while (first < last) {
    const size_t bit = first % 64, count = std::min(last - first, 64 - bit);
    const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << bit;
    uint64_t& word = written[first / 64];
    word = value ? word | mask : word & ~mask;
    first += count;
  }
}

// First granule in [first, last) that has not been written, or last.
size_t first_unwritten(size_t first, size_t last) {
  while (first < last) {
    const size_t bit = first % 64, count = std::min(last - first, 64 - bit);
    const uint64_t missing = ~written[first / 64] >> bit;
    if (missing) {
      const size_t skip = __builtin_ctzll(missing);
      if (skip < count) return first + skip;
    }
    first += count;
  }
  return last;
}

// no_fence: after a write; no_fence_after_read: before a write.
enum class Fault : uint64_t {
  write_write,
  read_after_write,
  write_after_read,
  no_fence,
  no_fence_after_read,
  uninitialised
};

std::string place(const Domain& domain, const uint8_t* pointer) {
  char text[96];
  if (in_global_memory(pointer)) {
    const Allocation* allocation = find_allocation(pointer);
    std::snprintf(text, sizeof text, "global memory, byte %td of an allocation of %zu", pointer - allocation->begin,
                  allocation->bytes);
    return text;
  }
  const Block& block = domain.blocks[arena_offset(pointer) / kWindowStride - domain.first_window];
  std::snprintf(text, sizeof text, "shared +0x%tx of ", pointer - block.shared);
  return text + block_name(block.index);
}

Report make_report(Fault kind, const uint8_t* pointer, bool writes, const Actor& actor, Site site, Epoch other,
                   Site other_site) {
  const Domain& domain = *machine.running->block->domain;
  const bool no_fence = kind == Fault::no_fence || kind == Fault::no_fence_after_read;
  std::string text = kind == Fault::uninitialised ? "UNINITIALISED "
                     : no_fence                   ? "MISSING fence.proxy.async, "
                                                  : "RACE, ";
  text += place(domain, pointer) + (writes ? ": write by " : ": read by ") + agent_name(domain, actor.agent) + " at ";
  if (kind == Fault::uninitialised) return {text, site, "", 0};
  const bool same_domain = serial_part(other) == domain.serial;
  std::string earlier = no_fence ? ", after the " : ", not ordered after the ";
  earlier += kind == Fault::write_after_read || kind == Fault::no_fence_after_read ? "read by " : "write by ";
  earlier += (same_domain ? agent_name(domain, agent_of(other)) : "another block") + " at ";
  return {text, site, earlier, other_site};
}

void report(Fault kind, const uint8_t* pointer, bool writes, const Actor& actor, Site site, Epoch other,
            Site other_site) {
  if (!reported.insert((uint64_t{site} << 32 ^ uint64_t{other_site} << 3) + static_cast<uint64_t>(kind)).second) return;
  ++stats().reports;
  reports.push_back(make_report(kind, pointer, writes, actor, site, other, other_site));
  if (static_cast<int>(reports.size()) < options().max_reports) return;
  machine.stopped = true;
  leave_for_main();
}

// One access of consecutive granules.
template <bool kShared>
class Check {
 public:
  Check(Access access, const Actor& actor, Site site)
      : actor_(actor),
        site_(site),
        serial_(machine.running->block->domain->serial),
        writes_(writes(access)),
        reads_(reads(access)),
        atomic_(is_atomic(access)) {
    epoch_ = Epoch{serial_} << kSerialShift | Epoch{actor.agent} << kAgentShift | (actor.async_proxy ? kAsync : 0) |
             (atomic_ ? kAtomic : 0) | actor.clock;
  }

  // Granules [first, last). Neighbours mostly have the same past, and then get the same future.
  void run(size_t first, size_t last) {
    Cell before, after;
    bool same = false;
    for (size_t g = first; g < last; ++g) {
      if (same && cells[g] == before) {
        cells[g] = after;
        if (changed_ >= 0) sites[g].access[changed_] = site_;
        continue;
      }
      before = cells[g];
      changed_ = -1;
      same = granule(g);
      after = cells[g];
    }
  }

 private:
  // Whether nothing was found.
  bool granule(size_t g) {
    place_ = g;
    found_ = false;
    Cell& cell = cells[g];
    if (cell.access[0] != epoch_) check_write(cell.access[0]);
    if (!writes_) {
      remember_read(cell);
      return !found_;
    }
    for (int slot = 1; slot < kSlots; ++slot) {
      if (!cell.access[slot]) continue;
      if (!tolerated(cell.access[slot])) {
        found(Fault::write_after_read, slot);
      } else if (lacks_fence(cell.access[slot])) {
        found(Fault::no_fence_after_read, slot);
      }
      cell.access[slot] = 0;
    }
    set(cell, 0);
    return !found_;
  }

  void check_write(Epoch write) {
    if (kShared && reads_ && serial_part(write) != serial_ && options().uninitialised) {
      found(Fault::uninitialised, 0);
    } else if (!tolerated(write)) {
      found(writes_ ? Fault::write_write : Fault::read_after_write, 0);
    } else if (lacks_fence(write)) {
      found(Fault::no_fence, 0);
    }
  }

  // An access of the async proxy after one of the generic proxy.
  bool lacks_fence(Epoch earlier) const {
    return actor_.async_proxy && !(earlier & kAsync) && serial_part(earlier) == serial_ &&
           actor_.view.seen_fenced(agent_of(earlier)) < clock_of(earlier);
  }

  // In the slot of an earlier read by the same agent, else of one that need not be remembered, else of any.
  void remember_read(Cell& cell) {
    int chosen = 0;
    for (int slot = 1; slot < kSlots; ++slot) {
      const Epoch read = cell.access[slot];
      if (read == epoch_) return;
      if ((read ^ epoch_) >> kClockBits == 0) return set(cell, slot);
      if (!chosen && (!read || happened_before(read))) chosen = slot;
    }
    set(cell, chosen ? chosen : 1 + static_cast<int>(machine.random.below(kSlots - 1)));
  }

  void set(Cell& cell, int slot) {
    cell.access[slot] = epoch_;
    sites[place_].access[slot] = site_;
    changed_ = slot;
  }

  bool tolerated(Epoch earlier) { return happened_before(earlier) || (atomic_ && (earlier & kAtomic)); }

  bool happened_before(Epoch earlier) {
    if (earlier == known_) return true;  // neighbours were mostly accessed together
    const uint32_t serial = serial_part(earlier);
    if (serial != serial_) {
      // A window of shared memory passes on from block to block; global memory only from launch to launch.
      return kShared || serial < first_serial;
    }
    if (actor_.view.seen(agent_of(earlier)) < clock_of(earlier)) return false;
    known_ = earlier;
    return true;
  }

  void found(Fault kind, int slot) {
    found_ = true;
    const bool none = kind == Fault::uninitialised;
    const Epoch other = none ? 0 : cells[place_].access[slot];
    const Site other_site = none ? 0 : sites[place_].access[slot];
    report(kind, arena + place_ * kGranule, writes_, actor_, site_, other, other_site);
  }

  const Actor& actor_;
  const Site site_;
  const uint32_t serial_;
  const bool writes_, reads_, atomic_;
  Epoch epoch_, known_ = 0;
  size_t place_ = 0;  // the granule at hand
  int changed_ = -1;  // its slot that took the access
  bool found_ = false;
};

void check_shared_extent(const uint8_t* pointer, size_t bytes, Site site) {
  const Block& mine = *machine.running->block;
  const size_t window = arena_offset(pointer) / kWindowStride - mine.domain->first_window;
  if (window / machine.cluster_blocks != mine.cluster) {
    fault_at(site, "access of shared memory outside this cluster");
  }
  const Block& owner = mine.domain->blocks[window];
  const ptrdiff_t offset = pointer - owner.shared;
  if (offset < 0 || offset + bytes > machine.config.shared_bytes) {
    fault_at(site, "OUT OF BOUNDS access of shared memory: %zu bytes at %td of %zu", bytes, offset,
             machine.config.shared_bytes);
  }
  if (!owner.live && &owner != &mine) fault_at(site, "access to the shared memory of a block that has exited");
}

void check_global_extent(const uint8_t* pointer, size_t bytes, Site site) {
  const Allocation* allocation = find_allocation(pointer);
  if (!allocation) fault_at(site, "OUT OF BOUNDS access of global memory: no allocation there");
  const ptrdiff_t offset = pointer - allocation->begin;
  if (offset < 0 || offset + bytes > allocation->bytes) {
    fault_at(site, "OUT OF BOUNDS access of global memory: %zu bytes at %td of an allocation of %zu", bytes, offset,
             allocation->bytes);
  }
}

}  // namespace

void record(const void* address, size_t bytes, Access access, const Actor& actor, Site site) {
  if (!bytes) return;
  const auto* pointer = static_cast<const uint8_t*>(address);
  const size_t offset = arena_offset(pointer);
  const size_t first = offset / kGranule, last = (offset + bytes + kGranule - 1) / kGranule;
  if (offset < kSharedBytes) {
    check_shared_extent(pointer, bytes, site);
    return Check<true>(access, actor, site).run(first, last);
  }
  check_global_extent(pointer, bytes, site);
  constexpr size_t kBefore = kSharedBytes / kGranule;
  if (reads(access) && options().uninitialised) {
    const size_t missing = first_unwritten(first - kBefore, last - kBefore) + kBefore;
    if (missing != last) {
      report(Fault::uninitialised, arena + missing * kGranule, writes(access), actor, site, 0, 0);
    }
  }
  Check<false>(access, actor, site).run(first, last);
  if (writes(access)) set_written(first - kBefore, last - kBefore, true);
}

void touch(const void* pointer, size_t bytes, Access access, void* pc) {
  if (access == Access::atomic_store) machine.polls = 0;
  if (!machine.races || !machine.running || !in_arena(pointer)) return;
  record(pointer, bytes, access, actor_of(*machine.running), site_of(pc ? pc : __builtin_return_address(0)));
}

void tick(Thread& thread) {
  if (++thread.view.self.clock >> kClockBits) fault({}, "the race detector's clock is full: shorten the test");
}

void release_view(Released& released) {
  if (!machine.races) return;
  released.add(machine.running->view);
  tick(*machine.running);
}

void acquire_view(Thread& thread, const SnapshotRef& snapshot) {
  if (machine.races) acquire_into(thread.view, snapshot);
}

void release_to(const void* pointer) {
  machine.polls = 0;  // what others may poll for
  if (machine.races) release_view(machine.running->block->domain->flags[pointer]);
}

void acquire(const void* pointer) {
  if (machine.races) acquire_view(*machine.running, machine.running->block->domain->flags[pointer].peek());
}

void fence_proxy_async() {
  show_mbarriers(*machine.running);
  if (!machine.races) return;
  fence_proxy(machine.running->view);
  tick(*machine.running);
}

// ---- for launches and allocations ----

void map_shadow() {
  if (!instrumented) return;
  cells = reserve_shadow<Cell>(kArenaBytes / kGranule * sizeof(Cell));
  sites = reserve_shadow<Sites>(kArenaBytes / kGranule * sizeof(Sites));
  written = reserve_shadow<uint64_t>(kGlobalBytes / kGranule / 8);
}

void forget_shadow(const void* global_memory, size_t bytes) {
  if (!instrumented) return;
  const size_t first = arena_offset(global_memory) / kGranule, count = bytes / kGranule;
  madvise(cells + first, count * sizeof(Cell), MADV_DONTNEED);
  madvise(sites + first, count * sizeof(Sites), MADV_DONTNEED);
}

void mark_unwritten(const void* pointer, size_t bytes) {
  if (!instrumented) return;
  const size_t first = global_granule(pointer);
  set_written(first, first + bytes / kGranule, false);
}

void mark_written(void* pointer, size_t bytes) {
  const auto lock = hold();
  if (!instrumented || !bytes) return;
  if (!in_global_memory(pointer)) throw std::runtime_error("simt: mark_written of memory that allocate did not return");
  set_written(global_granule(pointer), global_granule(static_cast<uint8_t*>(pointer) + bytes + kGranule - 1), true);
}

void require_constant(const void* pointer, size_t bytes, Source where) {
  if (!machine.races || !in_arena(pointer)) return;
  const size_t first = arena_offset(pointer) / kGranule, last = (arena_offset(pointer) + bytes - 1) / kGranule;
  for (size_t g = first; g <= last; ++g) {
    if (serial_part(cells[g].access[0]) < first_serial) continue;
    fault(where, "a load of constant memory (ld.global.nc) that this kernel has written");
  }
}

void begin_races(uint32_t domains) {
  if (agent_count() >> kAgentBits) throw_error("more agents than the race detector can name");
  if ((uint64_t{next_serial} + domains) >> kSerialBits) {
    madvise(cells, kArenaBytes / kGranule * sizeof(Cell), MADV_DONTNEED);
    next_serial = 1;
  }
  first_serial = next_serial;
  next_serial += domains;
  reports.clear();
  reported.clear();
  begin_clocks(agent_count());
}

uint32_t serial_of(uint32_t domain_number) {
  return first_serial + domain_number;
}
std::string race_reports() {
  std::vector<Site> places;
  for (const Report& report : reports) {
    places.push_back(report.site);
    places.push_back(report.earlier_site);
  }
  const std::vector<std::string> names = describe(places);
  std::string text;
  for (size_t i = 0; i < reports.size(); ++i) {
    if (i) text += '\n';
    text += reports[i].access + names[2 * i];
    text += reports[i].earlier.empty() ? ", nobody has written it" : reports[i].earlier + names[2 * i + 1];
  }
  return text;
}

}  // namespace simt
