# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the four compiled parts; everything else about the package is in pyproject.toml.

Three link against the shared libraries that the unicorn and capstone wheels carry. An installed
package finds unicorn's through a relative run path, beside itself in site-packages: no compiler,
no system library, and no trace of the machine that built the wheel. capstone's is in the process
already when ``translator`` loads the scanner (its package says why).
"""

import sysconfig
from pathlib import Path

import capstone
import unicorn
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

UNICORN = Path(unicorn.__file__).parent
CAPSTONE = Path(capstone.__file__).parent


class BuildExt(build_ext):
    """An in-place (or editable) build is not beside unicorn: it gets the absolute path as well.

    That is the site-packages of the Python that builds. ``unicorn.__file__`` may lie in pip's
    build environment, which is gone when the build is done.
    """

    def finalize_options(self):
        super().finalize_options()
        self._in_place = bool(self.inplace)     # setuptools clears it while it builds

    def build_extension(self, ext):
        if self._in_place or self.editable_mode:
            site = sysconfig.get_path("platlib")
            ext.extra_link_args.append(f"-Wl,-rpath,{site}/unicorn/lib")
        super().build_extension(ext)


def extension(name: str, sources: list[str], *, library: Path, depends: list[str],
              link: tuple[str, ...] = ()) -> Extension:
    """One extension linked to ``library``, a file inside another wheel."""
    return Extension(
        name, sources, depends=depends,
        include_dirs=[str(UNICORN / "include"), str(CAPSTONE / "include"), "bt/core"],
        extra_link_args=[str(library), *link],
        extra_compile_args=["-O2", "-fno-strict-aliasing", "-Wno-unused-function"],
    )


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=cythonize(
        [
            extension("translator._scan", ["translator/_scan.pyx"],
                      library=CAPSTONE / "lib/libcapstone.so", depends=["translator/_scan.pxd"]),
            extension("bt.core.vcpu", ["bt/core/vcpu.pyx"],
                      library=UNICORN / "lib/libunicorn.so.2",
                      link=("-Wl,-rpath,$ORIGIN/../../unicorn/lib",),
                      depends=[str(p) for p in sorted(Path("bt/core").glob("*.px[id]"))]),
            extension("bt.compare._native", ["bt/compare/_native.pyx"],
                      library=UNICORN / "lib/libunicorn.so.2",
                      link=("-Wl,-rpath,$ORIGIN/../../unicorn/lib",),
                      depends=["bt/core/unicorn.pxi", "bt/core/layout.pxi"]),
            # Timers are in librt where the C library is older than 2.34.
            Extension("bt.core.sampler", ["bt/core/sampler.pyx"], libraries=["rt"],
                      extra_compile_args=["-O2"]),
        ],
        language_level=3,
        compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True,
                             "initializedcheck": False},
    ),
)
