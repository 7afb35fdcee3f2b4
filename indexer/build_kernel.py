"""Compiles the search kernel beside its source when the project is installed, with the compiler of the machine.

Where there is none, or it fails, the installation goes on with a warning: searches then use FAISS and NumPy. By hand:
`python indexer/build_kernel.py`.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "heliotrope_indexer" / "search" / "kernel.c"
LIBRARY = SOURCE.with_name("libkernel.so")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-Wno-psabi")


def compile_kernel() -> str | None:
    """Writes the library; returns what went wrong, or None."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "there is no C compiler"
    aside = LIBRARY.with_suffix(".new")
    said = ""
    # Code for several processors needs an x86 compiler and a C library that can choose; others get plain code.
    for flags in (("-DPER_PROCESSOR",), ()):
        command = [*compiler.split(), *_FLAGS, *flags, "-o", str(aside), str(SOURCE), "-lm"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            # A server that runs keeps the file it has mapped.
            aside.replace(LIBRARY)
            return None
        said = f"{' '.join(command)}: {run.stderr.strip()[-2000:]}"
    return said


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:
    pass  # by hand
else:

    class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
        """Runs for wheels, editable ones included."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            problem = compile_kernel()
            if problem is not None:
                self.app.display_warning(f"searches will do without the compiled kernel: {problem}")
                return
            build_data["pure_python"] = False
            build_data["artifacts"].append(str(LIBRARY.relative_to(self.root)))
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            # Plain C, which knows nothing of Python: one wheel for all versions.
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    problem = compile_kernel()
    if problem is not None:
        raise SystemExit(problem)
    print(LIBRARY)
