/* Linked into the libraries of wheels, hidden. libstdc++'s headers ask it whether reference counts
 * may do without atomics; glibc has it from 2.32 on, and wheels want no more than 2.28. */
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
