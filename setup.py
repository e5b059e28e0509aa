"""Drives CMake. All build logic is in CMakeLists.txt; this only says where things are and where they go."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FIND_TORCH = "import torch, sys; sys.exit(0 if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 11) else 3)"


def environment_with_torch() -> dict[str, str]:
    """An environment in which this interpreter imports torch. pip's build isolation hides it by way of PYTHONPATH."""
    hidden = dict(os.environ)
    visible = {key: value for key, value in hidden.items() if key != "PYTHONPATH"}
    codes = []
    for env in (hidden, visible):
        codes.append(subprocess.run([sys.executable, "-c", FIND_TORCH], env=env, stderr=subprocess.DEVNULL).returncode)
        if codes[-1] == 0:
            return env
    found = "an older torch was found" if 3 in codes else "no torch was found"
    sys.exit(f"xlstm_cuda: {found} in {sys.prefix}: install torch >= 2.11 there first, then install xlstm_cuda again.")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        env = environment_with_torch()
        options = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "XLSTM_VERSION": self.distribution.get_version(),
            "XLSTM_CUDA": os.environ.get("XLSTM_CUDA", "auto"),
        }
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        defines = [f"-D{key}={value}" for key, value in options.items()]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call(["cmake", "-S", ROOT, "-B", build, *generator, *defines], env=env)
        subprocess.check_call(["cmake", "--build", build, "--parallel", jobs], env=env)
        subprocess.check_call(["cmake", "--install", build, "--prefix", target], env=env)


setup(ext_modules=[Extension("xlstm_cuda._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
