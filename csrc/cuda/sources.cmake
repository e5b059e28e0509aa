# The CUDA kernels and the ops on them: compiled for devices (CMakeLists.txt at the root) and for the host executor
# (csrc/simt/CMakeLists.txt).
set(xlstm_cuda_folder ${CMAKE_CURRENT_LIST_DIR})
set(xlstm_kernel_sources
    ${xlstm_cuda_folder}/mlstm_chunkwise/gate_grads.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/gates.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/normaliser.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_bf16.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_f64.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_tf32.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_tf32x3.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/states.cu
    ${xlstm_cuda_folder}/mlstm_step/mlstm_step.cu
    ${xlstm_cuda_folder}/recurrent/device.cu
    ${xlstm_cuda_folder}/recurrent/resident_bwd.cu
    ${xlstm_cuda_folder}/recurrent/resident_bwd_bf16.cu
    ${xlstm_cuda_folder}/recurrent/resident_bwd_f16.cu
    ${xlstm_cuda_folder}/recurrent/resident_bwd_f64.cu
    ${xlstm_cuda_folder}/recurrent/resident_bwd_tf32.cu
    ${xlstm_cuda_folder}/recurrent/resident_bwd_tf32x3.cu
    ${xlstm_cuda_folder}/recurrent/resident_fwd.cu
    ${xlstm_cuda_folder}/recurrent/resident_fwd_bf16.cu
    ${xlstm_cuda_folder}/recurrent/resident_fwd_f16.cu
    ${xlstm_cuda_folder}/recurrent/resident_fwd_f64.cu
    ${xlstm_cuda_folder}/recurrent/resident_fwd_tf32.cu
    ${xlstm_cuda_folder}/recurrent/resident_fwd_tf32x3.cu
    ${xlstm_cuda_folder}/recurrent/step.cu
    ${xlstm_cuda_folder}/recurrent/stepwise_bwd.cu
    ${xlstm_cuda_folder}/recurrent/stepwise_fwd.cu
    ${xlstm_cuda_folder}/recurrent/weight_grad.cu)
set(xlstm_device_op_sources
    ${xlstm_cuda_folder}/mlstm_chunkwise/chunkwise.cpp
    ${xlstm_cuda_folder}/recurrent/plan.cpp
    ${xlstm_cuda_folder}/../ops/device/errors.cpp
    ${xlstm_cuda_folder}/../ops/device/mlstm_chunkwise.cpp
    ${xlstm_cuda_folder}/../ops/device/mlstm_step.cpp
    ${xlstm_cuda_folder}/../ops/device/recurrent.cpp
    ${xlstm_cuda_folder}/../ops/device/recurrent_step.cpp
    ${xlstm_cuda_folder}/../ops/device/session.cpp)
# Ops on single kernels, for their tests on the executor.
set(xlstm_kernel_op_sources
    ${xlstm_cuda_folder}/../ops/device/mlstm_gate_grads.cpp
    ${xlstm_cuda_folder}/../ops/device/mlstm_gates.cpp
    ${xlstm_cuda_folder}/../ops/device/mlstm_outputs.cpp
    ${xlstm_cuda_folder}/../ops/device/mlstm_states.cpp
    ${xlstm_cuda_folder}/../ops/device/recurrent_weight_grad.cpp)
# What every library of ops needs: helpers, checks, schemas.
set(xlstm_op_sources
    ${xlstm_cuda_folder}/../ops/common.cpp
    ${xlstm_cuda_folder}/../ops/mlstm_chunkwise_call.cpp
    ${xlstm_cuda_folder}/../ops/mlstm_step_call.cpp
    ${xlstm_cuda_folder}/../ops/recurrent_call.cpp
    ${xlstm_cuda_folder}/../ops/schemas.cpp)
