"""What pyproject.toml cannot say: a wheel carries the notebooks and the bundled files.

They are put inside the package, under the names that they have here; settings.PROJECT finds
them in both places. An editable installation uses those of the checkout.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = ("data/bundled", "notebooks")


class BuildWithFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in CARRIED:
            target = Path(self.build_lib, "spamgpt", folder)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))


setup(cmdclass={"build_py": BuildWithFiles})
