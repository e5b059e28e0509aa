#pragma once
// Stackful contexts: one stack for each CUDA thread, switched by hand.
#include <cstddef>
#include <cstdint>

namespace simt {

// Saves the running context's stack pointer in *save and resumes the context saved as `load`.
void switch_context(void** save, void* load);
// Where a context resumes, its saved stack pointer being rsp.
void resume_context();
// A new context on a stack that was taken; it will call entry, which must not return.
void* make_context(uint8_t* stack, void (*entry)());

// Stacks, kept for the next launch. Code compiled with -fstack-clash-protection does not step over the guard below.
constexpr size_t kPage = 4096, kStackGuard = 4 * kPage;
void set_stack_size(size_t bytes);  // only while no stack is taken
uint8_t* take_stack();
void give_back_stack(uint8_t*);
const uint8_t* stack_end(const uint8_t* stack);  // of what its context may use

}  // namespace simt
