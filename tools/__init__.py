"""Programs for those who work on the library. gpu_check: what only a machine with an NVIDIA GPU can tell."""
