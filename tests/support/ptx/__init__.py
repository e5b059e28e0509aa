"""What PTX's instructions must compute, by exact arithmetic: cases and the kernels that run them."""
