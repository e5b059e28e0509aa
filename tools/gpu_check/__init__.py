"""Evidence from a machine with an NVIDIA GPU: `make gpu-check`, docs/gpu-check.md.

Nothing here imports torch before the machine has been looked at: what is missing is told in a sentence.
"""
