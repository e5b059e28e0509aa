#!/usr/bin/env bash
# tests/tools/torches.sh PYTHON SDIST [lowest]: the core tests on the lowest torch that is supported and on the newest that pip offers,
# each in an environment of its own, which goes again. The extension is built with the lowest; both run that file. With
# "lowest" on that one alone.
set -euo pipefail
python=$1
sdist=$(realpath "$2")
folder=build/torches
lowest=$(sed -n 's/^dependencies = \["torch>=\(.*\)"\]$/\1.0/p' pyproject.toml)
core='build/test_import functional/test_torch functional/test_mlstm functional/test_recurrent functional/test_steps
  models/test_lm'

rm -rf $folder && mkdir -p $folder
trap 'rm -rf $folder/venv' EXIT  # some gigabytes
cp -r tests pyproject.toml $folder
versions=("torch==$lowest")
[ "${3:-}" = lowest ] || versions+=(torch)
for torch in "${versions[@]}"; do
  "$python" -m venv $folder/venv
  pip="$folder/venv/bin/python -m pip --disable-pip-version-check -q"
  if ! $pip install --no-compile "$torch"; then
    echo "$torch cannot be installed here: not tried"
    [ "$torch" != torch ] && exit 1  # the extension is built with it
    break
  fi
  $pip install 'setuptools>=77' 'pybind11>=2.13' 'cmake>=3.25' ninja numpy safetensors tqdm pytest pytest-timeout pytest-xdist hypothesis
  if ! ls $folder/*.whl 2>/dev/null; then
    XLSTM_CUDA=off PATH="$PWD/$folder/venv/bin:$PATH" $pip wheel --no-build-isolation --no-deps -w $folder "$sdist"
  fi
  $pip install --no-deps $folder/*.whl
  (cd $folder && venv/bin/python -m xlstm_cuda info && venv/bin/python -m pytest -n 2 $(printf 'tests/%s.py ' $core))
  rm -rf $folder/venv
done
