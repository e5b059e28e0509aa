#pragma once
// Planted faults that prove the tests: XLSTM_MUTANT("kernel: what is wrong") is true on the host executor where a test
// has chosen it by name, and false, at no cost, everywhere else.
#include "cuda/device/platform.h"

#if XLSTM_SIMT
#define XLSTM_MUTANT(name) simt::mutant(name)
#else
#define XLSTM_MUTANT(name) false
#endif
