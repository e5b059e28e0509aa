#pragma once
// Threads that can run: a ring as large as the launch, since a thread is in it at most once.
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace simt {

struct Thread;

class ReadyQueue {
 public:
  void reset(size_t capacity) {
    size_t size = 1;
    while (size < capacity) size *= 2;
    if (ring_.size() < size) ring_.resize(size);
    mask_ = ring_.size() - 1;
    head_ = tail_ = 0;
  }
  size_t size() const { return tail_ - head_; }
  bool empty() const { return head_ == tail_; }
  Thread*& operator[](size_t i) { return ring_[(head_ + i) & mask_]; }

  void push_back(Thread* thread) { ring_[tail_++ & mask_] = thread; }
  void push_front(Thread* thread) { ring_[--head_ & mask_] = thread; }
  Thread* pop_front() { return ring_[head_++ & mask_]; }
  Thread* pop_back() { return ring_[--tail_ & mask_]; }
  Thread* pop(size_t i) {
    std::swap((*this)[i], ring_[(tail_ - 1) & mask_]);
    return pop_back();
  }

 private:
  std::vector<Thread*> ring_;
  size_t mask_ = 0, head_ = 0, tail_ = 0;
};

}  // namespace simt
