"""Runs the rules, the constructs, the property tests and a part of the battery on each version of torch in a table.

Each version has an environment of its own under `.venv-compat`, made when it is first asked for. `make compat` runs all
versions, `python tests/compat.py 2.6 newest` some of them. Ends with a line for each; exit status 1 if any has failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The oldest that pyproject.toml claims, some between, and the newest that pip has: torch -> its torchvision.
VERSIONS = {"2.6": ("torch==2.6.*", "torchvision==0.21.*"),
            "2.9": ("torch==2.9.*", "torchvision==0.24.*"),
            "newest": ("torch", "torchvision")}
TOOLS = (".[timm]", "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.110")
TESTS = ("tests/rules", "tests/constructs", "tests/property")
NETWORKS = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "googlenet")


def run(python: Path, *arguments: str) -> int:
    """The exit status of a command in an environment; on one thread, or waiting threads hinder each other."""
    return subprocess.run([python, "-m", *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def check(version: str) -> int:
    """Make or update the environment of a version, and run the tests in it."""
    environment = ROOT / ".venv-compat" / f"torch-{version}"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    packages = (*VERSIONS[version], *TOOLS[1:], "-e", TOOLS[0])
    if run(python, "pip", "install", "--quiet", "--upgrade-strategy=only-if-needed", "--upgrade", *packages):
        return 1
    workers = os.environ.get("COMPAT_WORKERS", "2")
    failed = run(python, "pytest", "-n", workers, "-p", "no:cacheprovider", "-m", "", *TESTS)
    names = " or ".join(f"{name}-" for name in NETWORKS)
    return failed | run(python, "pytest", "-n", workers, "-p", "no:cacheprovider", "-m", "",
                        "tests/battery/test_torchvision.py", "-k", f"test_a_cut_is_exact and ({names})")


def main() -> int:
    """The named versions, or all: 0 if every one of them passes."""
    wanted = sys.argv[1:] or list(VERSIONS)
    unknown = [version for version in wanted if version not in VERSIONS]
    if unknown:
        print(f"compat: {', '.join(unknown)}: no such version; there are {', '.join(VERSIONS)}", file=sys.stderr)
        return 2
    results = {version: "failed" if check(version) else "passed" for version in wanted}
    for version, result in results.items():
        print(f"torch {version}: {result}")
    return int("failed" in results.values())


if __name__ == "__main__":
    sys.exit(main())
