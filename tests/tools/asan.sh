#!/usr/bin/env bash
# tests/tools/asan.sh PYTHON [PYTEST OPTIONS]: random calls and the tests of the ops on an extension with AddressSanitizer and
# UndefinedBehaviorSanitizer, in a package of its own. GCC. ASAN_SECONDS: of random calls.
set -euo pipefail
python=$1
shift
folder=build/asan
core='kernels/test_ops functional/test_sizes functional/test_inplace functional/test_corners kernels/test_poison
  functional/test_recurrent functional/test_steps functional/test_mlstm kernels/test_threads'

rm -rf $folder/package && mkdir -p $folder/package
options=$("$python" -c "
import os, sys, pybind11, torch
print('-DPython_EXECUTABLE=' + sys.executable, '-Dpybind11_DIR=' + pybind11.get_cmake_dir())
print('-DXLSTM_TORCH_DIR=' + os.path.dirname(torch.__file__))")
{
  cmake -S . -B $folder/cmake -G Ninja -DXLSTM_SANITIZE=ON -DXLSTM_CUDA=off $options &&
    cmake --build $folder/cmake &&
    cmake --install $folder/cmake --prefix $folder/package
} >$folder/log 2>&1 || { cat $folder/log; exit 1; }
tar -cf - --exclude='*.so' --exclude=__pycache__ xlstm_cuda | tar -xf - -C $folder/package

compiler=${CXX:-g++}
export LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0:allocator_may_return_null=1:max_allocation_size_mb=8192
export UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$folder/package
"$python" tests/tools/fuzz.py --seconds "${ASAN_SECONDS:-60}"
# append: pytest's own way puts the root, with the plain extension, before that package
"$python" -m pytest -o pythonpath="$folder/package ." --import-mode=append -n 2 $(printf 'tests/%s.py ' $core) "$@"
