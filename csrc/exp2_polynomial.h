// 2^f for |f| <= 1/2 in float: coefficients of 1, f, f^2, ..., minimax in relative error (9.3e-8).
#pragma once

#define POWERGRAD_EXP2_COEFFICIENTS \
  1.0f, 0.693147f, 0.24022247f, 0.05550711f, 0.00967129f, 0.0013269515f
