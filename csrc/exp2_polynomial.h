// The slope (2^f - 1) / f for |f| <= 1/2: coefficients of 1, f, f^2, ..., so chosen that the
// relative error of 1 + f slope is minimax.
#pragma once

// Float: relative error at most 9.3e-8 before rounding.
#define POWERGRAD_EXP2_SLOPE 0.693147f, 0.24022247f, 0.05550711f, 0.00967129f, 0.0013269515f

// Double: 4.2e-17.
#define POWERGRAD_EXP2_SLOPE_DOUBLE                                                   \
  0.69314718055994569679, 0.24022650695910098007, 0.055504108664790389252,            \
      0.0096181291076070019986, 0.0013333558153441334774, 0.00015403530441572599042,  \
      0.000015252727383872462884, 1.3215442675115585098e-6, 1.0180648196555812362e-7, \
      7.0725704454692940706e-9, 4.0779938562463537778e-10
