// What forward assumes of the upstream gradient on a GPU, where the host cannot look at it without
// waiting: that it is the one that came last to a loss like this one.
#pragma once

#include <c10/core/Device.h>

#include "powergrad.h"

namespace powergrad {

// Where on the device the last upstream gradient is kept (accumulate type; 1 to begin with) for
// losses of this shape, type and reduction; null where it cannot be had. There are few such places,
// so that they need no end: losses may share one, which costs time when their upstream gradients
// differ, and never a bit. They are there for ever, as captured graphs go on using them.
void* last_grad_output(const CrossEntropyParams& params, bool is_mean, c10::Device device);

}  // namespace powergrad
