// Run-time options of the sanitizers.

extern "C" {

const char* __asan_default_options() {
  return "detect_stack_use_after_return=0";  // fibers restart unannounced
}

const char* __tsan_default_options() { return "halt_on_error=1"; }

}  // extern "C"
