// Calls to the sanitizers. The layer itself is compiled without them, so that they see the kernels'
// memory accesses and not its bookkeeping.
#pragma once

#include <cstddef>

#if defined(POWERGRAD_SANITIZE_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(POWERGRAD_SANITIZE_THREAD)
#include <sanitizer/tsan_interface.h>
// In the runtime, but not in its header.
extern "C" void __tsan_write_range(void* begin, unsigned long size);
extern "C" void __tsan_read_range(void* begin, unsigned long size);
#endif

namespace powergrad::host_cuda {

#if defined(POWERGRAD_SANITIZE_ADDRESS)

inline void poison(void* begin, std::size_t size) { __asan_poison_memory_region(begin, size); }
inline void unpoison(void* begin, std::size_t size) { __asan_unpoison_memory_region(begin, size); }
inline bool is_poisoned(const void* begin, std::size_t size) {
  return __asan_region_is_poisoned(const_cast<void*>(begin), size) != nullptr;
}
inline void begin_switch(void** saved, const void* stack, std::size_t size) {
  __sanitizer_start_switch_fiber(saved, stack, size);
}
inline void end_switch(void* saved, const void** old_stack, std::size_t* old_size) {
  __sanitizer_finish_switch_fiber(saved, old_stack, old_size);
}

#else

inline void poison(void*, std::size_t) {}
inline void unpoison(void*, std::size_t) {}
inline bool is_poisoned(const void*, std::size_t) { return false; }
inline void begin_switch(void**, const void*, std::size_t) {}
inline void end_switch(void*, const void**, std::size_t*) {}

#endif

#if defined(POWERGRAD_SANITIZE_THREAD)

inline void* create_identity() { return __tsan_create_fiber(0); }
inline void* current_identity() { return __tsan_get_current_fiber(); }
inline void destroy_identity(void* identity) { __tsan_destroy_fiber(identity); }
// Orders nothing: the two threads stay concurrent.
inline void assume_identity(void* identity) {
  __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync);
}
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
inline void report_write(void* begin, std::size_t size) { __tsan_write_range(begin, size); }
inline void report_read(const void* begin, std::size_t size) {
  __tsan_read_range(const_cast<void*>(begin), size);
}

#else

inline void* create_identity() { return nullptr; }
inline void* current_identity() { return nullptr; }
inline void destroy_identity(void*) {}
inline void assume_identity(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
inline void report_write(void*, std::size_t) {}
inline void report_read(const void*, std::size_t) {}

#endif

}  // namespace powergrad::host_cuda
