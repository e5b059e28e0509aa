#pragma once
// The choice of the next thread. Threads run until they block, yield or exit; the order is that of the launch's seed.
#include "simt/executor.h"
#include "simt/fiber.h"

namespace simt {

struct Thread;

// Wait::what of waits whose object the deadlock report describes.
inline constexpr const char* kMbarrierWait = "mbarrier wait";
inline constexpr const char* kClusterWait = "barrier.cluster.wait";
inline constexpr const char* kGridWait = "grid sync";

// Until wake(); the object is what a deadlock report says more about.
void block(const char* what, Source, const void* object = nullptr, uint32_t detail = 0);
void wake(Thread*);
void reschedule();        // after every other thread that can run
void maybe_reschedule();  // in half of the cases, where the seed shuffles
void preempt();           // after an access: in a race build, about every options().preempt of them
void poll(Source);        // reschedules; a fault after too many polls without progress by any thread
[[noreturn]] void leave_for_main();

// ---- for the main context ----
void resume_threads();  // some must be ready; returns when none can run any more, or a domain ended, or on a fault
[[noreturn]] void thread_entry();
void shuffle_ready(size_t from);

}  // namespace simt
