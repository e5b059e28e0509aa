#pragma once
namespace simt {

struct Thread;

// The running thread's last act; what it left unfinished is a fault. True where its domain ended with it and another
// can start in its place.
bool finish_thread(Thread&);

}  // namespace simt
