# make demo | tasks | test | test-examples | test-all | test-elsewhere | test-asan | test-sdist | test-torches | test-peers | simt | gates | gpu-check | bench | lint: each sets up what is missing first.
# PYTHON=path: that interpreter is used as it is, nothing but this package is installed into it. Otherwise .venv is made.
# TORCH: what to install where no torch >= 2.11 is importable. Options of the demo: make demo ARGS="--data FOLDER";
# one experiment of examples/tasks, or its options: make tasks ARGS="parity --seed 1".
TORCH ?= torch==2.13.0
ARGS  ?=
PY    := $(if $(filter undefined default,$(origin PYTHON)),,$(PYTHON))
PY    := $(or $(PY),.venv/bin/python)
STAMP   := build/.installed$(subst /,_,$(PY))
SOURCES := $(shell find csrc cmake -type f -not -path 'csrc/simt/*') CMakeLists.txt setup.py pyproject.toml
HAS_TORCH := import torch; assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 11)

# With which CUDA kernels the extension is built. XLSTM_CUDA says it (on, off, or auto: where there is an nvcc); where it
# does not, they are built where there is a GPU to run them, for they take minutes. pip install . itself takes auto.
CHOICE     := build/.cuda
ANY_PYTHON := $(if $(filter .venv/%,$(PY)),python3,$(PY))
LEFT_OUT   := No GPU was found: the CUDA kernels are left out. They are built with XLSTM_CUDA=on.

# The executor that runs CUDA sources on a CPU, its self-test, and the libraries of backend="simt". It needs CUDA's
# headers, no GPU and no nvcc.
SIMT_SOURCES := $(shell find csrc/core csrc/cuda csrc/ops csrc/simt tests/simt -type f)
FIND_TORCH := import os, torch; print(os.path.dirname(torch.__file__))
CUDA_HEADERS := $(or $(CUDA_HOME),$(CUDA_PATH),/usr/local/cuda)/include

.PHONY: always demo tasks task-packages test test-all test-elsewhere test-asan peers test-peers test-transformers simt ptx test-ptx test-ptx-all test-device-faults sass gates gpu-check gpu-machine bench lint clean
demo: $(STAMP)
	$(PY) examples/train_lm.py $(ARGS)

tasks: task-packages
	$(PY) -m examples.tasks $(or $(ARGS),all)

# What the experiments read their data with (extra [tasks]); without it make test skips some of their tests.
task-packages: build/.tasks$(subst /,_,$(PY))

build/.tasks$(subst /,_,$(PY)): $(STAMP)
	@$(PY) -c "$(THIS_TORCH)" >build/torch.txt
	@$(PY) tools/packages.py tasks >build/packages.txt
	$(PY) -m pip install -q --disable-pip-version-check -c build/torch.txt -r build/packages.txt
	@touch $@

# test: the library. test-examples: the programs around it. Against other packages: test-peers. test-all: everything, the
# slow tests too.
PROGRAMS := tests/examples tests/tasks tests/bench
test: $(STAMP) build/.simt
	$(PY) -m pytest -n 2 --dist worksteal $(addprefix --ignore=,$(PROGRAMS) tests/interop/peers) $(ARGS)

.PHONY: test-examples
test-examples: $(STAMP) build/.simt
	$(PY) -m pytest -n 2 --dist worksteal $(PROGRAMS) $(ARGS)

test-all: $(STAMP) build/.simt
	$(PY) -m pytest -n 2 --dist worksteal -m 'slow or not slow' $(ARGS)

# The suite in one environment after the other that rounds or draws differently, and a table: tests/tools/elsewhere.py.
test-elsewhere: $(STAMP)
	$(PY) tests/tools/elsewhere.py $(ARGS)

# Random calls and the tests of the ops on an extension with sanitizers: tests/tools/asan.sh.
test-asan: $(STAMP)
	PATH="$(abspath $(dir $(PY))):$$PATH" bash tests/tools/asan.sh $(PY) $(ARGS)

# The packages that ours replaces (extra [peers]), for the tests in tests/interop/peers. test-transformers: its previous major version, and either one as if xlstm were not installed.
peers: build/.peers$(subst /,_,$(PY))

PREVIOUS  := build/peers/transformers-4.57
THIS_TORCH := import torch; print('torch==' + torch.__version__.partition('+')[0])
build/.peers$(subst /,_,$(PY)): $(STAMP)
	@$(PY) -c "$(THIS_TORCH)" >build/torch.txt
	@$(PY) tools/packages.py peers >build/packages.txt
	$(PY) -m pip install -q --disable-pip-version-check -c build/torch.txt -r build/packages.txt 'transformers>=5' requests
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(PREVIOUS) 'transformers==4.57.*' 'huggingface_hub<1' 'tokenizers<0.23'
	@touch $@

test-peers: peers
	$(PY) -m pytest -n 2 --dist worksteal tests/interop/peers $(ARGS)
	$(MAKE) test-transformers

HF_TESTS := $(PY) -m pytest -n 2 tests/interop/peers/test_transformers.py
test-transformers: peers
	PEERS_WITHOUT=xlstm $(HF_TESTS)
	PYTHONPATH=$(PREVIOUS) $(HF_TESTS)
	PYTHONPATH=$(PREVIOUS) PEERS_WITHOUT=xlstm $(HF_TESTS)

# The same with packages that are large, or slow to import (extra [packages]): trainers, quantised weights, the
# lm-evaluation-harness, flashrnn, TiRex-2, the Hugging Face Hub's kernels.
PACKAGE_TESTS := $(addprefix tests/interop/peers/test_,finetuning.py lm_eval.py flashrnn.py hub_kernel.py tirex_2.py) tests/examples/test_migrate.py tests/nn/test_children_are_called.py
.PHONY: test-packages
test-packages: build/.packages$(subst /,_,$(PY))
	$(PY) -m pytest -n 2 --dist worksteal -m '' -k '(peers or tuning or Eval or TiRex or FlashRNN or Hub or quantised_by) and not of_its_own' $(PACKAGE_TESTS) $(ARGS)

build/.packages$(subst /,_,$(PY)): build/.peers$(subst /,_,$(PY))
	@$(PY) tools/packages.py packages >build/packages.txt
	$(PY) -m pip install -q --disable-pip-version-check -c build/torch.txt -r build/packages.txt
	@touch $@

# A package of AOTInductor: built, which takes a C++ compiler and half a minute, and run without one. Layers and models as
# graphs for ONNX, where there is onnxruntime.
.PHONY: test-ahead-of-time
test-ahead-of-time: $(STAMP)
	$(PY) -m pytest -n 2 -m slow -k 'ahead or whole' tests/nn/test_export.py tests/nn/test_onnx.py $(ARGS)

# An sdist, installed from another folder than this one, and tests of what is installed, in a third folder.
SDIST := build/sdist
.PHONY: test-sdist test-torches
test-sdist: $(STAMP)
	@rm -rf $(SDIST) xlstm_cuda.egg-info && mkdir -p $(SDIST)
	@$(PY) -c "from setuptools import build_meta; build_meta.build_sdist('$(SDIST)')" >$(SDIST)/log 2>&1 || { cat $(SDIST)/log; exit 1; }
	XLSTM_CUDA=off PATH="$(abspath $(dir $(PY))):$$PATH" $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps --target $(SDIST)/installed $(SDIST)/*.tar.gz
	@rm -rf xlstm_cuda.egg-info  # of the sdist: the package would be found here, without the tests' settings
	@cp -r tests pyproject.toml $(SDIST)
	PYTHONPATH='$(abspath $(SDIST)/installed)' $(PY) -c "import os, sys; os.chdir('$(SDIST)'); import pytest; sys.exit(pytest.main(['tests/build/test_import.py']))"

# The lowest torch that is supported, and the newest that pip offers: some gigabytes each, removed at the end. ARGS=lowest:
# that one alone.
test-torches: test-sdist
	tests/tools/torches.sh $(PY) $(SDIST)/*.tar.gz $(ARGS)

simt: build/.simt

# What nvcc makes of the kernels, translated to C++ and linked to the executor: the libraries of backend="ptx". PTX_ARCHS:
# of which architectures. PTX_FAULTS=on: with the planted faults, which what ships does not have. PTX_SOURCES: some sources
# alone, as "resident_fwd_bf16", for a quick look at their kernels; others are then no part of the libraries.
PTX_ARCHS   ?= sm_90a
PTX_FAULTS  ?= off
PTX_SOURCES ?=
ptx: build/.simt
	@command -v nvcc >/dev/null || { echo 'ptx: no nvcc on the PATH'; exit 1; }
	PATH="$(abspath $(dir $(PY))):$$PATH"; { cmake -S csrc/simt -B build/simt '-DXLSTM_PTX_ARCHS=$(call joined,$(PTX_ARCHS))' -DXLSTM_PTX_FAULTS=$(PTX_FAULTS) '-DXLSTM_PTX_SOURCES=$(call joined,$(PTX_SOURCES))' && cmake --build build/simt --target _ptx _ptx_race $(if $(and $(filter sm_90a,$(PTX_ARCHS)),$(if $(PTX_SOURCES),,all)),simt_selftest_ptx) && cmake --install build/simt --prefix . --component ptx; } >build/ptx.log || { cat build/ptx.log; exit 1; }

# The tests of the CUDA kernels on their PTX. ARGS="-k ..." chooses among them.
ON_PTX = XLSTM_EXECUTOR=ptx $(PY) -m pytest -n 2 --dist worksteal -m 'simt and not slow' $(ARGS)
test-ptx: $(STAMP) ptx
	$(ON_PTX)

# On the PTX of both architectures, as it ships and with the planted faults: two builds, four runs of the tests.
AN_A100 := compute_capability=80 max_shared_bytes=166912 max_cluster=1 multiprocessors=108
test-ptx-all: $(STAMP)
	for faults in on off; do $(MAKE) ptx PTX_ARCHS='sm_90a sm_80' PTX_FAULTS=$$faults && $(ON_PTX) && XLSTM_SIMT_OPTIONS='$(AN_A100)' $(ON_PTX) || exit 1; done

# The machine code of the kernels, weighed by what the executor counts: docs/kernels/machine-code.md. ARGS="--check".
sass: build/.sass$(subst /,_,$(PY)) ptx
	$(PY) -m bench sass $(ARGS)

build/.sass$(subst /,_,$(PY)): $(STAMP)
	$(PY) -m pip install -q --disable-pip-version-check nvidia-cuda-nvdisasm
	@touch $@

# Faults planted in what only nvcc compiles, asm strings and the like: each of them must be noticed. ARGS="--only tma.h".
test-device-faults: build/.simt
	@command -v nvcc >/dev/null || { echo 'test-device-faults: no nvcc on the PATH'; exit 1; }
	PATH="$(abspath $(dir $(PY))):$$PATH"; { cmake -S csrc/simt -B build/simt '-DXLSTM_PTX_ARCHS=$(call joined,$(PTX_ARCHS))' && cmake --build build/simt --target simt_selftest_ptx; } >build/ptx.log || { cat build/ptx.log; exit 1; }
	PATH="$(abspath $(dir $(PY))):$$PATH" $(PY) -m tests.tools.device_faults $(ARGS)

# The CUDA sources through nvcc for every architecture, warnings of ptxas (spills, local memory, serialised wgmma) as
# errors, registers against the checked-in table. No GPU needed. BUILT=folder: where the kernels are compiled already, as
# they are in the build of an extension for these architectures.
GATE_ARCHS := 8.0 9.0a 10.0 12.0
space      := $() $()
joined      = $(subst $(space),;,$(strip $(1)))
BUILT      ?=
.PHONY: gate-archs
gate-archs:
	@echo '$(call joined,$(GATE_ARCHS))'

gates: $(filter .venv/%,$(PY))
	@command -v nvcc >/dev/null || { echo 'gates: no nvcc on the PATH'; exit 1; }
	@mkdir -p build
	PATH="$(abspath $(dir $(PY))):$$PATH"; cmake -S tests/simt -B build/gates -G Ninja >build/gates.log && cmake --build build/gates >>build/gates.log || { cat build/gates.log; exit 1; }
ifeq ($(BUILT),)
	PATH="$(abspath $(dir $(PY))):$$PATH"; cmake -S csrc/cuda -B build/gates-kernels -G Ninja '-DCMAKE_CUDA_ARCHITECTURES=$(call joined,$(subst .,,$(GATE_ARCHS:%=%-real)))' >build/gates-kernels.log && cmake --build build/gates-kernels >>build/gates-kernels.log 2>&1 || { cat build/gates-kernels.log; exit 1; }
endif
	$(PY) tests/tools/kernel_resources.py $(or $(BUILT),build/gates-kernels) $(ARGS)

# What can be told on a machine with an NVIDIA GPU only: docs/gpu-check.md. The machine is looked at before .venv is made.
gpu-check: gpu-machine $(filter .venv/%,$(PY))
	@$(PY) -m tools.gpu_check $(ARGS)

gpu-machine:
	@$(ANY_PYTHON) -B -m tools.gpu_check --machine

bench: $(STAMP)
	$(PY) -m bench run --suite cpu --json runs/bench.json $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	find csrc tests/simt -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(dir $(PY))clang-format --dry-run --Werror

build/.simt: $(SIMT_SOURCES) $(filter .venv/%,$(PY))
ifeq ($(wildcard $(CUDA_HEADERS)/cuda_bf16.h),)
	@echo 'simt: no CUDA headers in $(CUDA_HEADERS) (set CUDA_HOME): the tests of the CUDA sources are skipped'
else ifneq ($(shell uname -sm),Linux x86_64)
	@echo 'simt: the executor runs on x86-64 Linux only: the tests of the CUDA sources are skipped'
else
	@mkdir -p build
	PATH="$(abspath $(dir $(PY))):$$PATH" cmake -S csrc/simt -B build/simt -G Ninja -DXLSTM_CUDA_INCLUDE=$(CUDA_HEADERS) -DXLSTM_TORCH_DIR="$$($(PY) -c '$(FIND_TORCH)')" >build/simt.log || { cat build/simt.log; exit 1; }
	PATH="$(abspath $(dir $(PY))):$$PATH" cmake --build build/simt >build/simt.log && cmake --install build/simt --prefix . >>build/simt.log || { cat build/simt.log; exit 1; }
	@touch $@
endif

# A folder that was copied or moved brings a .venv that knows the old one, and the environment of PYTHON may know another
# clone by now: that one's package would be run in the place of this one. (Nothing but `make clean` mends build too.)
IMPORTED := import importlib.util, os, sys; sys.path = [p for p in sys.path if p]; spec = importlib.util.find_spec('xlstm_cuda'); found = os.path.dirname(spec.origin) if spec else 'nowhere'; print('' if os.path.realpath(found) == os.path.realpath('xlstm_cuda') else found)
ifneq ($(wildcard $(STAMP)),)
ifneq ($(MAKECMDGOALS),clean)
ELSEWHERE := $(shell $(PY) -c "$(IMPORTED)")
ifneq ($(ELSEWHERE),)
$(error $(PY) finds xlstm_cuda in $(ELSEWHERE), not in this folder, which was copied or moved, or another one was installed since: run `make clean`, then this again)
endif
endif
endif

$(STAMP): $(SOURCES) $(CHOICE) $(filter .venv/%,$(PY))
	@if [ -z '$(XLSTM_CUDA)' ] && grep -q '^off' $(CHOICE) && command -v nvcc >/dev/null; then echo '$(LEFT_OUT)'; fi
	XLSTM_CUDA=$$(cut -d' ' -f1 $(CHOICE)) $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# Written only where it says something new: what depends on it is then made again.
$(CHOICE): always
	@mkdir -p build
	@cuda='$(XLSTM_CUDA)'; [ "$$cuda" ] || { $(ANY_PYTHON) -B -m tools.gpu_check --gpu 2>/dev/null && cuda=auto || cuda=off; }; \
	choice="$$cuda $$TORCH_CUDA_ARCH_LIST"; echo "$$choice" | cmp -s - $@ || echo "$$choice" >$@

.venv/bin/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'xlstm_cuda needs Python 3.10 or later as python3, or make PYTHON=path'; exit 1; }
	@if python3 -c "$(HAS_TORCH)" 2>/dev/null; then python3 -m venv --system-site-packages .venv; else python3 -m venv .venv; fi
	@echo 'Setting up .venv (once) ...'
	@.venv/bin/python -c "$(HAS_TORCH)" 2>/dev/null || .venv/bin/python -m pip install -q --disable-pip-version-check '$(TORCH)' || { rm -rf .venv; exit 1; }
	@mkdir -p build
	@.venv/bin/python tools/packages.py build test lint >build/packages.txt && .venv/bin/python -m pip install -q --disable-pip-version-check -r build/packages.txt || { rm -rf .venv; exit 1; }

clean:
	rm -rf build .venv xlstm_cuda/*.so xlstm_cuda.egg-info
