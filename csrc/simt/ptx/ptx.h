#pragma once
// All that C++ translated from PTX (tools/ptx) is made of.
#include "simt/fault.h"
#include "simt/ptx/adversary.h"
#include "simt/ptx/asynchronous.h"
#include "simt/ptx/collective.h"
#include "simt/ptx/convert.h"
#include "simt/ptx/count.h"
#include "simt/ptx/floating.h"
#include "simt/ptx/integer.h"
#include "simt/ptx/memory.h"
#include "simt/ptx/registry.h"
#include "simt/ptx/special.h"
#include "simt/ptx/types.h"

#pragma GCC visibility push(hidden)
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
#pragma GCC visibility pop
