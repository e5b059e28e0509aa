"""Other libraries that the benchmarks run beside this one."""
