"""The native core. Everything else of the packaging is in pyproject.toml."""

import os
import sys

from setuptools import Extension, setup

flags = os.environ.get("SHMRPC_CFLAGS", "").split()
steps = ("steps",) if "-DSHMRPC_STEPS" in flags else ()  # shmrpc/_native/steps.h

# Shared-memory transport exists on POSIX only; elsewhere the package installs without the extension, `import shmrpc`
# works, and serving says what is missing.
native = Extension(
    "shmrpc._native",
    sources=[
        f"shmrpc/_native/{name}.c"
        for name in (
            "module",
            "producer",
            "consumer",
            "release_types",
            "view",
            "references",
            "ledger",
            "call_types",
            "first_step",
            "requester",
            *steps,
        )
    ],
    depends=[
        f"shmrpc/_native/{name}.h" for name in ("atomics", "binding", "layout", "references", "ring", "steps", "wake")
    ],
    # Rings are bytes that are read as words; and gcc 12 for aarch64 moved reads of a copied struct before its writes (its
    # "stack reuse"), which this prevents: tests/native/test_native_programs.py shows it, emulated.
    extra_compile_args=["-std=c11", "-O3", "-fno-strict-aliasing", "-Wall", "-Wextra", *flags],
    extra_link_args=os.environ.get("SHMRPC_LDFLAGS", "").split(),
)

setup(ext_modules=[] if sys.platform == "win32" else [native])
