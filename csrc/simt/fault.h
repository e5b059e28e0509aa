#pragma once
// Faults end a launch: they switch to the main context, which throws.
#include <string>

#include "simt/executor.h"
#include "simt/site.h"

namespace simt {

struct Thread;
struct Domain;

[[noreturn, gnu::format(printf, 2, 3)]] void fault(Source where, const char* format, ...);
[[noreturn, gnu::format(printf, 2, 3)]] void fault_at(Site site, const char* format, ...);
// Leaves a fault of the running thread for the main context, which it does not switch to.
[[gnu::format(printf, 2, 3)]] void record_fault(Site site, const char* format, ...);
// For wrappers of instructions that a device may not have, e.g. require_capability(90, "mbarrier", where).
void require_capability(unsigned least, const char* what, Source where);

// "mbarrier.h:12"
std::string line_of(Source);
std::string block_name(uint3 index);
std::string thread_name(const Thread&);
// The name of an agent of a domain (state.h) in reports.
std::string agent_name(const Domain&, uint32_t agent);

// ---- for the main context ----
void clear_fault();
bool fault_pending();
std::string take_fault();
[[noreturn]] void throw_error(const std::string& message);  // with the kernel's name and the seed
std::string deadlock_report();

// Turns SIGSEGV and its like into faults while it exists.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
};

}  // namespace simt
