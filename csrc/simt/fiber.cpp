#include "simt/fiber.h"

#include <sys/mman.h>

#include <stdexcept>
#include <vector>

#if !defined(__x86_64__) || !defined(__linux__)
#error "the host SIMT executor runs on x86-64 Linux only"
#endif

namespace simt {

__attribute__((naked, noinline)) void resume_context() {
  asm("pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

__attribute__((naked, noinline)) void switch_context(void** /*save*/, void* /*load*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

namespace {

size_t stack_size = 0;
std::vector<uint8_t*> stacks;

// Stacks are whole pages apart: frames at the same offset in each would compete for a few sets of the cache.
size_t cache_offset(const uint8_t* stack) {
  constexpr uint32_t kGolden = 0x9E3779B9;
  constexpr int kPlaceBits = 5;
  const auto page = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(stack) / kPage);
  return size_t{page * kGolden >> (32 - kPlaceBits)} * (kPage >> kPlaceBits);
}

void unmap(uint8_t* stack) {
  munmap(stack - kStackGuard, kStackGuard + stack_size);
}

}  // namespace

const uint8_t* stack_end(const uint8_t* stack) {
  return stack + stack_size - cache_offset(stack);
}

void* make_context(uint8_t* stack, void (*entry)()) {
  auto* top = reinterpret_cast<uint64_t*>(const_cast<uint8_t*>(stack_end(stack)));
  top[-1] = 0;  // the caller of entry, for unwinders
  top[-2] = reinterpret_cast<uint64_t>(entry);
  for (int saved = 3; saved <= 8; ++saved) top[-saved] = 0;
  return top - 8;
}

void set_stack_size(size_t bytes) {
  bytes = (bytes + kPage - 1) / kPage * kPage;
  if (bytes == stack_size) return;
  for (uint8_t* stack : stacks) unmap(stack);
  stacks.clear();
  stack_size = bytes;
}

uint8_t* take_stack() {
  if (stacks.empty()) {
    void* memory =
        mmap(nullptr, kStackGuard + stack_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("simt: no address space for stacks");
    uint8_t* stack = static_cast<uint8_t*>(memory) + kStackGuard;
    if (mprotect(stack, stack_size, PROT_READ | PROT_WRITE)) throw std::runtime_error("simt: no memory for stacks");
    stacks.push_back(stack);
  }
  uint8_t* stack = stacks.back();
  stacks.pop_back();
  return stack;
}

void give_back_stack(uint8_t* stack) {
  constexpr size_t kKept = 4096;
  if (stacks.size() < kKept) {
    stacks.push_back(stack);
  } else {
    unmap(stack);
  }
}

}  // namespace simt
