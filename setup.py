"""Drives CMake. All build logic is in CMakeLists.txt; this only says where things are and where they go."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FIND_TORCH = "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, sep=';', end='')"


def interpreters() -> Iterator[tuple[str, dict[str, str]]]:
    """Pythons that may have torch, each with its environment variables.

    Build isolation hides torch: pip's by PYTHONPATH, that of uv and build by an environment of their own. That of the
    user is then where VIRTUAL_ENV or CONDA_PREFIX says, on the PATH if it is active, or .venv here, as uv finds it.
    """
    hidden = dict(os.environ)
    visible = {key: value for key, value in hidden.items() if key != "PYTHONPATH"}
    yield sys.executable, hidden
    folders = [Path(os.environ[name]) / "bin" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    found = [shutil.which("python", path=str(folder)) for folder in (*folders, ROOT / ".venv" / "bin")]
    for python in dict.fromkeys([sys.executable, *filter(None, found)]):
        yield python, visible


def find_torch() -> tuple[str, str]:
    """Folder and version of the user's torch. Any from 2.11 on will do: the extension runs on every later one."""
    seen = []
    for python, env in interpreters():
        run = subprocess.run([python, "-c", FIND_TORCH], env=env, capture_output=True, text=True)
        if run.returncode == 0:
            folder, version = run.stdout.split(";")
            if tuple(map(int, version.split(".")[:2])) >= (2, 11):
                return folder, version
            seen.append(f"torch {version} of {python}")
    sys.exit(
        f"xlstm_cuda: building needs torch >= 2.11, found {', '.join(seen) or 'none'}. Install it in an environment, "
        "activate that, and there: pip install setuptools pybind11 cmake ninja; pip install --no-build-isolation . "
        "(with uv: uv pip install, both times)."
    )


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        ninja = shutil.which("ninja")
        build = ROOT / "build" / f"cmake-{'ninja' if ninja else 'make'}-{sysconfig.get_config_var('SOABI')}"
        torch_folder, torch_version = find_torch()
        options = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "XLSTM_TORCH_DIR": torch_folder,
            "XLSTM_TORCH_VERSION": torch_version,
            "XLSTM_VERSION": self.distribution.get_version(),
            "XLSTM_CUDA": os.environ.get("XLSTM_CUDA", "auto"),
            "XLSTM_DEBUG_WAITS": os.environ.get("XLSTM_DEBUG_WAITS", "0"),
        }
        if ninja:  # said anew each time: under build isolation it lives in a folder that is gone the next time
            options["CMAKE_MAKE_PROGRAM"] = ninja
        generator = ["-G", "Ninja"] if ninja else []
        defines = [f"-D{key}={value}" for key, value in options.items()]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call(["cmake", "-S", ROOT, "-B", build, *generator, *defines])
        subprocess.check_call(["cmake", "--build", build, "--parallel", jobs])
        subprocess.check_call(["cmake", "--install", build, "--prefix", target])


if __name__ == "__main__":
    setup(ext_modules=[Extension("xlstm_cuda._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
