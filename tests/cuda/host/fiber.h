// A flow of control with a stack and, for ThreadSanitizer, a thread of its own.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace powergrad::host_cuda {

// The saved registers of a suspended fiber.
#if defined(__x86_64__)
using Context = void*;  // the stack pointer; the registers are on the stack
#else
using Context = ucontext_t;
#endif

class Fiber {
 public:
  using Entry = void (*)();

  Fiber();  // for the code that is running
  explicit Fiber(std::size_t stack_size);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next switch to this fiber call `entry`, which never returns.
  void restart(Entry entry);
  void abandon();

  // Suspends this fiber, the running one.
  void switch_to(Fiber& next);

  void* identity() const { return identity_; }

 private:
  static void start();
  void arrive();

  Context context_{};
  Entry entry_ = nullptr;
  void* mapping_ = nullptr;
  const void* stack_ = nullptr;
  std::size_t stack_size_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* identity_;
};

}  // namespace powergrad::host_cuda
