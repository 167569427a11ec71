# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the two compiled parts; everything else about the package is in pyproject.toml.

Both link against the shared libraries that the unicorn and capstone wheels carry, through a
relative run path: an installed wheel finds them beside itself in site-packages, with no compiler
and no system library.
"""

from pathlib import Path

import capstone
import unicorn
from Cython.Build import cythonize
from setuptools import Extension, setup

UNICORN = Path(unicorn.__file__).parent
CAPSTONE = Path(capstone.__file__).parent


def extension(name: str, sources: list[str], *, package: Path, library: str, depth: int,
              depends: list[str]) -> Extension:
    """One extension linked to ``library`` inside another wheel's ``lib`` folder."""
    site = package.name
    up = "/".join([".."] * depth)
    return Extension(
        name, sources, depends=depends,
        include_dirs=[str(UNICORN / "include"), str(CAPSTONE / "include"), "bt/core"],
        extra_link_args=[str(package / "lib" / library),
                         f"-Wl,-rpath,$ORIGIN/{up}/{site}/lib", f"-Wl,-rpath,{package / 'lib'}"],
        extra_compile_args=["-O2", "-fno-strict-aliasing", "-Wno-unused-function"],
    )


setup(ext_modules=cythonize(
    [
        extension("translator._scan", ["translator/_scan.pyx"], package=CAPSTONE,
                  library="libcapstone.so", depth=1,
                  depends=["translator/_scan.pxd"]),
        extension("bt.core.vcpu", ["bt/core/vcpu.pyx"], package=UNICORN,
                  library="libunicorn.so.2", depth=2,
                  depends=[str(p) for p in sorted(Path("bt/core").glob("*.px[id]"))]),
    ],
    language_level=3,
    compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True,
                         "initializedcheck": False},
))
