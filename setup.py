"""Where the packages lie; everything else is in pyproject.toml.

The top-level folders are installed inside the one package: ``backends/`` is ``apf_elastic.backends``, and so on.
Symbolic links of the same names in ``apf_elastic/`` let type checkers, editors and a plain checkout see the same.
"""

from setuptools import find_packages, setup

OUTSIDE = ("backends", "glidein", "wrappers", "configs")

setup(
    packages=find_packages(include=["apf_elastic", "apf_elastic.*"]),
    package_dir={f"apf_elastic.{name}": name for name in OUTSIDE},
)
