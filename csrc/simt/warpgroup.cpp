#include "simt/warpgroup.h"

#include "simt/fault.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr int kLeastRegisters = 24, kMostRegisters = 256, kRegisterStep = 8;
constexpr int kRegistersOfAnSm = 65536;

bool same_place(Source a, Source b) {
  return a.line == b.line && a.file == b.file;
}

// The warpgroups of a block share its registers: those that one asks for, others have given back.
void check_register_pool(const Block& block, Source where) {
  int sum = 0;
  for (const Warpgroup& group : block.warpgroups) sum += group.aligned.registers * static_cast<int>(kWarpgroup);
  if (sum > kRegistersOfAnSm) {
    fault(where, "setmaxnreg: the warpgroups of the block ask for %d registers together, an SM has %d", sum,
          kRegistersOfAnSm);
  }
}

}  // namespace

bool AlignedInstructions::pass(uint32_t member, const char* name, int operand, Source where) {
  const uint32_t at = next_[member]++ - done_;
  const bool first = at == instructions_.size();
  if (first) instructions_.push_back({name, operand, where, 0});
  Instruction& instruction = instructions_[at];
  if (instruction.name != name || instruction.operand != operand || !same_place(instruction.where, where)) {
    fault(where, "DIVERGENT warpgroup: other threads executed %s at %s, this one executes %s", instruction.name,
          line_of(instruction.where).c_str(), name);
  }
  if (++instruction.passed == kWarpgroup) {
    instructions_.pop_front();
    ++done_;
  }
  return first;
}

void AlignedInstructions::finish() const {
  if (instructions_.empty()) return;
  const Instruction& instruction = instructions_.front();
  fault(instruction.where, "DIVERGENT warpgroup: %u of 128 threads have executed this %s, the others have exited",
        instruction.passed, instruction.name);
}

Warpgroup& warpgroup_of(const Thread& thread, const char* instruction, Source where) {
  if (options().compute_capability / 10 != 9) {
    fault(where, "%s exists on compute capability 90 only, the device has %u", instruction,
          options().compute_capability);
  }
  if (machine.block_threads - thread.rank / kWarpgroup * kWarpgroup < kWarpgroup) {
    fault(where, "%s in a warpgroup of fewer than 128 threads", instruction);
  }
  std::vector<Warpgroup>& groups = thread.block->warpgroups;
  if (groups.empty()) groups.resize((machine.block_threads + kWarpgroup - 1) / kWarpgroup);
  return groups[thread.rank / kWarpgroup];
}

void set_max_registers(int registers, bool increase, Source where) {
  const char* name = increase ? "setmaxnreg.inc" : "setmaxnreg.dec";
  if (registers % kRegisterStep || registers < kLeastRegisters || registers > kMostRegisters) {
    fault(where, "%s: %d registers, expected a multiple of 8 from 24 to 256", name, registers);
  }
  const Thread& thread = *machine.running;
  AlignedInstructions& aligned = warpgroup_of(thread, name, where).aligned;
  if (!aligned.pass(thread.rank % kWarpgroup, name, registers, where)) return;
  const int before = aligned.registers;
  if (before && (increase ? registers < before : registers > before)) {
    fault(where, "%s: to %d registers, the warpgroup has %d", name, registers, before);
  }
  aligned.registers = registers;
  if (!before) check_register_pool(*thread.block, where);  // later changes may wait for those of others
}

}  // namespace simt
