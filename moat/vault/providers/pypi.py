"""The `pypi` grant: an API token for uploads to PyPI. Installing needs none."""

from __future__ import annotations

from moat.vault.providers.declared import Declared, Injection, Shape

_USER = "__token__"  # PyPI: the user name that goes with every API token

PROVIDER = Declared(
    name="pypi",
    summary="Uploads to PyPI",
    hosts=("upload.pypi.org",),
    opens=("pypi.org", "files.pythonhosted.org"),
    injection=Injection("authorization", "basic", _USER),
    shape=Shape("pypi-"),
    marks=("pypi-",),
    sources=("PYPI_TOKEN", "UV_PUBLISH_TOKEN", "TWINE_PASSWORD"),
    variables=("TWINE_PASSWORD", "UV_PUBLISH_TOKEN"),
    constants={"TWINE_USERNAME": _USER},
    where="https://pypi.org/manage/account/token/",
)
