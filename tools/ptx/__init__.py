"""Translates PTX, as nvcc writes it, to C++ that runs on the host executor: python -m tools.ptx FILE --output FOLDER.

Every kernel becomes one C++ function. Virtual registers are its locals, labels are labels, and a branch is a goto.
What an instruction does stands in csrc/simt/ptx. An instruction, modifier or type that is not known is an error that
names the file and the line: nothing is guessed.
"""
