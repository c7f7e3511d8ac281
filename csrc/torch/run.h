// The boundary between the operators, which are the same for every device, and a device's half of
// the binding: whatever reads or writes the data of a tensor lies behind it.
#pragma once

#include <c10/core/Device.h>

#include "powergrad.h"
#include "shards.h"

namespace powergrad {

// Every function takes the device on which the pointers of its struct are.
struct DeviceFunctions {
  void (*cross_entropy_forward)(const CrossEntropyParams&, c10::Device);
  // The same for params without losses: only their sum, divided by *divisor unless that is null,
  // goes to `loss`.
  void (*cross_entropy_forward_reduced)(const CrossEntropyParams&, const double* divisor,
                                        void* loss, c10::Device);
  void (*cross_entropy_backward)(const CrossEntropyParams&, c10::Device);
  void (*log_softmax_forward)(const LogSoftmaxParams&, c10::Device);
  void (*log_softmax_backward)(const LogSoftmaxParams&, c10::Device);

  // See last_grad_output.h; null where the host can read grad_output itself.
  void* (*last_grad_output)(const CrossEntropyParams&, bool is_mean, c10::Device);

  // What reduction="mean" divides by: the summed weights of the targets that count, each times its
  // row's weight. Stops at a target out of range or a row weight that is negative or not finite, by
  // IndexError and ValueError on a CPU and a device-side assertion on a GPU. On a GPU
  // *params.next_speculation becomes *speculative_grad_output, unless that is null.
  void (*total_weight)(const CrossEntropyParams&, double* total_weight,
                       void* speculative_grad_output, c10::Device);
  // The same for a call that has its total weight already.
  void (*check_targets)(const CrossEntropyParams&, c10::Device);
  // The sum of params.losses, divided by *divisor unless that is null, to `loss`.
  void (*reduce_losses)(const CrossEntropyParams&, const double* divisor, void* loss, c10::Device);
  // Stops at a shard whose arguments differ, by RuntimeError or a device-side assertion.
  void (*merge_shards)(const MergeParams&, c10::Device);
};

// NotImplementedError where there are no kernels for the device.
const DeviceFunctions& functions_of(c10::Device device);

const DeviceFunctions& cpu_functions();
const DeviceFunctions& cuda_functions();

}  // namespace powergrad
