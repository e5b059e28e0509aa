#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <iterator>

#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/scheduler.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// Two copies of this library may be loaded, and run kernels in two threads. So a handler passes on what is not its
// own, and takes itself out only where it was installed last: else it stays, for the other copy to put back.
struct Installed {
  bool in_chain = false;
  struct sigaction previous;
} installed[std::size(kSignals)];

std::atomic<bool> active = false;
pthread_t executor_thread;
alignas(16) uint8_t handler_stack[64 << 10];
stack_t previous_stack;

// The only lock that both copies can see is one of the C library's.
class ProcessLock {
 public:
  ProcessLock() { flockfile(stderr); }
  ~ProcessLock() { funlockfile(stderr); }
  ProcessLock(const ProcessLock&) = delete;
};

const char* reason(int signal, const uint8_t* address) {
  if (signal == SIGFPE) return "integer division by zero";
  if (signal == SIGILL) return "trap";
  const Thread& thread = *machine.running;
  if (address >= thread.stack - kStackGuard && address < thread.stack) {
    return "STACK OVERFLOW: locals need more than options().stack_bytes";
  }
  if (in_global_memory(address)) return "OUT OF BOUNDS access of global memory (guard page or released memory)";
  if (in_arena(address)) return "OUT OF BOUNDS access of shared memory";
  return "access of memory that is not a kernel's (a wild, null or misaligned pointer)";
}

void pass_on(int signal, siginfo_t* info, void* context) {
  const size_t i = std::find(std::begin(kSignals), std::end(kSignals), signal) - std::begin(kSignals);
  const struct sigaction& previous = installed[i].previous;
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    sigaction(signal, &previous, nullptr);  // it happens again, and ends the process
  }
}

// Resumes the main context in place of the faulting thread, with the message left for it.
void on_signal(int signal, siginfo_t* info, void* context) {
  if (!active || !pthread_equal(pthread_self(), executor_thread) || !machine.running) {
    return pass_on(signal, info, context);
  }
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* at = reinterpret_cast<const void*>(registers[REG_RIP] + 1);  // sites are return addresses
  record_fault(site_of(at), "%s", reason(signal, static_cast<const uint8_t*>(info->si_addr)));
  registers[REG_RSP] = reinterpret_cast<greg_t>(machine.main_context);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&resume_context);
}

void install(int signal, Installed& state) {
  if (state.in_chain) return;
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(signal, &action, &state.previous);
  state.in_chain = true;
}

void remove(int signal, Installed& state) {
  struct sigaction now;
  sigaction(signal, nullptr, &now);
  if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_signal) return;
  sigaction(signal, &state.previous, nullptr);
  state.in_chain = false;
}

}  // namespace

SignalGuard::SignalGuard() {
  executor_thread = pthread_self();
  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, &previous_stack);
  const ProcessLock lock;
  for (size_t i = 0; i < std::size(kSignals); ++i) install(kSignals[i], installed[i]);
  active = true;
}

SignalGuard::~SignalGuard() {
  active = false;
  const ProcessLock lock;
  for (size_t i = 0; i < std::size(kSignals); ++i) remove(kSignals[i], installed[i]);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace simt
