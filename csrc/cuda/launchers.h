#pragma once
// The launchers of the CUDA kernels: one `run` per kind of parameters.
#include "cuda/conv/conv.h"
#include "cuda/gated/gated.h"
#include "cuda/headwise/headwise.h"
#include "cuda/mlstm_chunkwise/chunkwise.h"
#include "cuda/mlstm_step/mlstm_step.h"
#include "cuda/norm/norm.h"
#include "cuda/recurrent/scan.h"
#include "cuda/recurrent/step.h"
