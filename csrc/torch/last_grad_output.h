// The grad_output that forward speculates on, on a GPU, where the host cannot read the actual one
// without synchronising: the last one of a loss like this one. The life of a speculation:
//
//   forward    launch_total_weight (cuda/launchers.h) copies the last grad_output, and forward
//              computes the gradient for that copy
//   backward   launch_cross_entropy_backward compares the copy with the actual grad_output. If they
//              differ it computes the gradient again and stores the actual one as the last one
//
// It saves one of three passes over memory, also under gradient accumulation and GradScaler, whose
// grad_outputs are not 1 but rarely change.
#pragma once

#include <c10/core/Device.h>

#include "powergrad.h"

namespace powergrad {

// The last grad_output (accumulate type, on the device; 1 at first) of losses of this shape, type
// and reduction: an entry of a hash table of fixed size. Null while a graph is captured that would
// own the table's memory. A collision only costs a recomputation, and never changes a bit. The
// table is never freed, since captured graphs keep its addresses.
void* last_grad_output(const CrossEntropyParams& params, bool is_mean, c10::Device device);

}  // namespace powergrad
