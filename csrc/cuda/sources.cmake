# The CUDA kernels and the ops on them: compiled for devices (CMakeLists.txt at the root) and for the host executor
# (csrc/simt/CMakeLists.txt).
set(xlstm_cuda_folder ${CMAKE_CURRENT_LIST_DIR})
set(xlstm_kernel_sources
    ${xlstm_cuda_folder}/conv/conv_any.cu
    ${xlstm_cuda_folder}/conv/conv_bwd.cu
    ${xlstm_cuda_folder}/conv/conv_fwd.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/current_device.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/gate_grads.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/gates.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/normaliser.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_bf16.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_f64.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_tf32.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_tf32x3.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/outputs_wgmma.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/states.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/states_wgmma.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/walk_grads.cu
    ${xlstm_cuda_folder}/mlstm_chunkwise/walk_wgmma.cu
    ${xlstm_cuda_folder}/mlstm_step/mlstm_step.cu
    ${xlstm_cuda_folder}/norm/norm_any.cu
    ${xlstm_cuda_folder}/norm/norm_bwd.cu
    ${xlstm_cuda_folder}/norm/norm_fwd.cu
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
set(xlstm_ops_folder ${xlstm_cuda_folder}/../ops)
# What runs them: launchers, and sessions on a device.
set(xlstm_device_op_sources
    ${xlstm_cuda_folder}/conv/conv.cpp
    ${xlstm_cuda_folder}/mlstm_chunkwise/chunkwise.cpp
    ${xlstm_cuda_folder}/mlstm_chunkwise/plan.cpp
    ${xlstm_cuda_folder}/norm/norm.cpp
    ${xlstm_cuda_folder}/recurrent/plan.cpp
    ${xlstm_cuda_folder}/recurrent/scan.cpp
    ${xlstm_ops_folder}/backends/architecture.cpp
    ${xlstm_ops_folder}/backends/device.cpp
    ${xlstm_ops_folder}/mlstm_plans.cpp
    ${xlstm_ops_folder}/recurrent_plans.cpp)
# Ops on single kernels, for their tests on the executor.
set(xlstm_kernel_op_sources
    ${xlstm_ops_folder}/kernel_ops/mlstm_gate_grads.cpp
    ${xlstm_ops_folder}/kernel_ops/mlstm_gates.cpp
    ${xlstm_ops_folder}/kernel_ops/mlstm_outputs.cpp
    ${xlstm_ops_folder}/kernel_ops/mlstm_states.cpp
    ${xlstm_ops_folder}/kernel_ops/mlstm_walk.cpp
    ${xlstm_ops_folder}/kernel_ops/mlstm_walk_grads.cpp
    ${xlstm_ops_folder}/kernel_ops/recurrent_weight_grad.cpp
    ${xlstm_ops_folder}/kernel_ops/simt_control.cpp)
# The ops of every library.
set(xlstm_op_sources
    ${xlstm_ops_folder}/causal_conv1d.cpp
    ${xlstm_ops_folder}/checks.cpp
    ${xlstm_ops_folder}/mlstm.cpp
    ${xlstm_ops_folder}/mlstm_step.cpp
    ${xlstm_ops_folder}/multihead_norm_gate.cpp
    ${xlstm_ops_folder}/recurrent.cpp
    ${xlstm_ops_folder}/recurrent_checks.cpp
    ${xlstm_ops_folder}/recurrent_step.cpp
    ${xlstm_ops_folder}/tensors.cpp)
