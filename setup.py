"""What a build adds to the package, for a place without tests: what they prove, and the evidence of the experiments."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithStatus(build_py):
    """Python files and data, and beside them the status of every system.

    An editable install has its checkout to ask, and what was derived here makes its first answer quick.
    """

    def run(self) -> None:
        super().run()
        sys.path.insert(0, str(ROOT / "src"))
        from steepest import catalogue

        if self.editable_mode:
            catalogue.statuses(catalogue.systems())
            return
        package = Path(self.build_lib) / "steepest"
        catalogue.write_status(package / "catalogue" / "status.json")
        evidence = package / "lab" / "evidence"
        shutil.rmtree(evidence, ignore_errors=True)
        evidence.mkdir(parents=True)
        for system in catalogue.systems():
            if (file := catalogue.evidence_file(system)).is_file():
                shutil.copy(file, evidence)


setup(cmdclass={"build_py": BuildWithStatus})
