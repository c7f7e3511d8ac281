// Every standard header the algorithm uses, included before a target region is opened: an inline
// function of the standard library instantiated inside one would be a symbol that the linker may
// choose for code meant to run on any processor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"
