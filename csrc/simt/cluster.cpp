// Shared memory of other blocks of the cluster.
#include <cstring>

#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/state.h"

namespace simt {

uint32_t map_rank(uint32_t address, uint32_t rank, Source where) {
  if (rank >= machine.cluster_blocks) {
    fault(where, "mapa: there is no rank %u in a cluster of %u", rank, machine.cluster_blocks);
  }
  return make_address(rank, address & kOffsetMask);
}

void load_cluster(void* value, uint32_t from, int bytes, Source where) {
  require_capability(90, "ld.shared::cluster", where);
  const uint8_t* memory = resolve_aligned(from, bytes, where);
  record(memory, bytes, Access::read, where);
  std::memcpy(value, memory, bytes);
}

void store_cluster(uint32_t to, const void* value, int bytes, Source where) {
  require_capability(90, "st.shared::cluster", where);
  uint8_t* memory = resolve_aligned(to, bytes, where);
  record(memory, bytes, Access::write, where);
  std::memcpy(memory, value, bytes);
}

}  // namespace simt
