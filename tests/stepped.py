"""The extension with its numbered steps (`shmrpc/_native/steps.h`), built once for a run. A plugin of pytest.

A process that finds the package in the folder that the fixture ``stepped_package`` gives dies, stops or is late where
``SHMRPC_STEP`` says; ``shmrpc._native.steps()`` counts the passages there. ``PYTHONPATH`` is not enough for ``python -c``
and ``-m``, which look in the working directory first.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from native_builds import CC, STRICT

import shmrpc

PACKAGE = Path(shmrpc.__file__).parent


def build_extension(package: Path, *flags: str) -> None:
    """Compiles the native core of a copy of the package into it; not by setup.py, whose tools a new venv may lack."""
    native = package / "_native"
    sources = [source for source in sorted(native.glob("*.c")) if source.stem != "steps" or "-DSHMRPC_STEPS" in flags]
    target = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    command = [CC, *STRICT, "-shared", "-fPIC", "-isystem", include, *flags]
    done = subprocess.run(
        [*command, *sources, "-o", target], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def stepped_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package whose native core has its steps."""
    if shutil.which(CC) is None:
        pytest.skip(f"no C compiler: {CC}")
    folder = tmp_path_factory.mktemp("stepped")
    shutil.copytree(PACKAGE, folder / "shmrpc", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    build_extension(folder / "shmrpc", "-O1", "-DSHMRPC_STEPS")
    return folder
