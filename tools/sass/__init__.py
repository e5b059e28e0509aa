"""The machine code of the kernels: read, weighed by what the executor counted, and timed by a model of a scheduler.

listing: what nvdisasm prints. flow: basic blocks and loops. profile: how often each instruction is executed, from the
counters of the same PTX on the host executor. measure: numbers of a loop. model: its time, by constants with sources.
"""
