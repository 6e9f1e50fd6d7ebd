"""Limits: positive, consistent with each other, each with its reason."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from moat.proxy import limits
from moat.proxy.limits import Limits


def test_every_limit_has_its_reason():
    source = inspect.getsource(limits.Limits)
    for field in dataclasses.fields(Limits):
        assert re.search(rf'{field.name}: (int|float) = .*\n    """.{{20,}}', source), field.name
        assert getattr(Limits(), field.name) > 0


def test_limits_fit_each_other():
    default = Limits()
    assert default.target < default.head
    assert default.chunk_extension < default.chunk_extensions
    assert default.upstream_idle_timeout < default.client_idle_timeout
    assert default.response_head_timeout == 300
    assert default.request_head_timeout == 60
    assert default.tls_handshake_timeout == 10
    assert default.dial_timeout == 30


def test_a_run_cannot_change_them():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().head = 1
    assert dataclasses.replace(Limits(), head=1).head == 1
