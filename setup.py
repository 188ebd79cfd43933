"""Builds YOSO's CPU kernel beside its sources.

Without a C compiler the package installs all the same, and warns when attention is slow.
"""

import platform
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = "src/headstart/models/yoso/kernels"


class BuildSharedLibrary(build_ext):
    """The kernel is loaded through ctypes, so its name has no Python version in it and there is no
    module to initialise.
    """

    def get_ext_filename(self, fullname: str) -> str:
        """The file beside the Python sources."""
        return "/".join(fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """What the sources mark as exported."""
        return list(ext.export_symbols or [])


class OneWheelForEveryPython(bdist_wheel):
    """The compiled part depends on the platform only."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tag in the wheel's name."""
        return "py3", "none", super().get_tag()[2]


def kernel() -> Extension:
    """The library. The vector extensions that it is written in are GCC's and Clang's.

    MSVC gets no kernel.
    """
    flags = [
        "-O3",
        "-std=gnu11",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-pthread",
    ]
    flags += ["-Wno-psabi", "-Wno-unknown-pragmas"]
    headers = [
        f"{KERNELS}/{name}.h" for name in ("yoso", "body", "vectors", "hash", "sampled", "exact")
    ]
    options: dict[str, Any] = {
        "extra_compile_args": flags,
        "extra_link_args": ["-pthread"],
        "depends": headers,
        "optional": True,
    }
    return Extension("headstart.models.yoso.kernels._yoso", [f"{KERNELS}/yoso.c"], **options)


setup(
    ext_modules=[] if platform.system() == "Windows" else [kernel()],
    cmdclass={"build_ext": BuildSharedLibrary, "bdist_wheel": OneWheelForEveryPython},
)
