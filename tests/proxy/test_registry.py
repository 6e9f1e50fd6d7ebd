"""Which token a request to an image registry needs."""

from __future__ import annotations

import pytest

from moat.proxy.registry import scope_of


@pytest.mark.parametrize(
    ("request_line", "scope"),
    [
        ("GET /v2/", ""),
        ("GET /v2/_catalog?n=5", "registry:catalog:*"),
        ("GET /v2/acme/x/tags/list", "repository:acme/x:pull"),
        ("HEAD /v2/acme/x/manifests/v1", "repository:acme/x:pull"),
        ("GET /v2/x/blobs/sha256:00", "repository:x:pull"),
        ("GET /v2/x/referrers/sha256:00?artifactType=a", "repository:x:pull"),
        ("PUT /v2/acme/x/manifests/v1", "repository:acme/x:pull,push"),
        ("POST /v2/acme/x/blobs/uploads/", "repository:acme/x:pull,push"),
        ("PATCH /v2/acme/x/blobs/uploads/0-1?_state=abc", "repository:acme/x:pull,push"),
        ("DELETE /v2/acme/x/manifests/sha256:00", "repository:acme/x:delete"),
        ("GET /v2/acme/blobs/manifests/v1", "repository:acme/blobs:pull"),
        (
            "POST /v2/acme/x/blobs/uploads/?mount=sha256:00&from=acme%2Fbase",
            "repository:acme/x:pull,push repository:acme/base:pull",
        ),
        ("POST /v2/x/blobs/uploads/?from=y&from=z", "repository:x:pull,push repository:y:pull"),
        # What is no name of a repository is never written into a scope.
        ("POST /v2/x/blobs/uploads/?from=y:*+registry:catalog:*", "repository:x:pull,push"),
        ("GET /v2/x%20y/tags/list", ""),
        ("GET /v2/x:y/tags/list", ""),
        ("GET /v2/x y/tags/list", ""),
        ("GET /other", ""),
    ],
)
def test_the_scope_is_what_the_request_needs(request_line: str, scope: str) -> None:
    method, _, target = request_line.partition(" ")
    assert scope_of(method.encode(), target.encode()) == scope
