# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel: all that is needed is in it, and it runs where it was not built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import lief
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PACKAGES = ("bt", "guests", "translator")
MADE = shutil.ignore_patterns("*.so", "*.c", "*.pyc", "__pycache__", ".*")


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built by pip, in its own build environment, from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=MADE)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source)
    # The sources are gone when the wheel is used.
    names = {str(path.relative_to(source)) for package in PACKAGES
             for path in (source / package).rglob("*")
             if path.is_file() and path.suffix != ".c"}
    shutil.rmtree(source)
    [path] = folder.glob("*.whl")
    return path, names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that the wheel and what it depends on are installed in."""
    folder = tmp_path_factory.mktemp("elsewhere") / "site"
    run(sys.executable, "-m", "pip", "install", "--target", folder, wheel[0])
    return folder


def test_every_source_and_data_file_is_in_the_wheel(wheel):
    path, names = wheel
    inside = set(zipfile.ZipFile(path).namelist())
    assert {"guests/linux/init", "guests/linux/exit.S", "translator/_scan.pxd"} <= names
    assert names <= inside
    others = {name for name in inside - names if ".dist-info/" not in name}
    compiled = sorted(name.removesuffix("x") for name in names if name.endswith(".pyx"))
    assert "bt/core/vcpu.py" in compiled
    assert sorted(re.sub(r"\..*\.so$", ".py", name) for name in others) == compiled
    assert any(name.endswith("/licenses/LICENSE") for name in inside)


def test_nothing_in_the_wheel_points_into_the_build_environment(wheel, tmp_path):
    with zipfile.ZipFile(wheel[0]) as archive:
        archive.extractall(tmp_path)
    for library in tmp_path.rglob("*.so"):
        binary = lief.parse(str(library))
        paths = [path for entry in binary.dynamic_entries
                 if isinstance(entry, lief.ELF.DynamicEntryRunPath) for path in entry.paths]
        assert [path for path in paths if "corn" in path or "capstone" in path] in (
            [], ["$ORIGIN/../../unicorn/lib"])
        assert not any("/" in str(name) for name in binary.libraries)


def test_it_runs_elsewhere_without_a_compiler(installed, tmp_path):
    environment = {"PYTHONPATH": str(installed), "PATH": "", "HOME": str(tmp_path),
                   "XDG_CACHE_HOME": str(tmp_path)}
    said = run(sys.executable, "-c", "import bt, bt.core.vcpu; print(bt.core.vcpu.__file__)",
               env=environment, cwd=tmp_path).stdout
    assert said.startswith(str(installed))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    bt = [sys.executable, "-m", "bt"]
    assert run(*bt, "--version", env=environment, cwd=tmp_path).stdout == f"bt {version}\n"
    assert "Hello" in run(*bt, "run", "hello", env=environment, cwd=tmp_path).stdout


def test_modules_are_compiled_when_installed(installed):
    """Compiling them at each start would take longer than starting does."""
    for package in PACKAGES:
        for module in (installed / package).rglob("*.py"):
            assert list((module.parent / "__pycache__").glob(f"{module.stem}.*.pyc")), module
