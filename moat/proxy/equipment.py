"""Credentials for one request: fetched, put where their rules say, and their use recorded before they leave.

`Equipment.put_on` is called when policy, leak guard, budget and decider have said yes, and not before. Then
`equipped.secrets` are what must not come back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import time

from moat.errors import MoatError
from moat.grants import Credential, part_of
from moat.proxy.answers import RefusedError, failed
from moat.proxy.download import Unreadable
from moat.proxy.events import DeniedError
from moat.proxy.fields import join_fields, split_fields
from moat.proxy.head import LENGTH, NONE, RequestHead
from moat.proxy.inject import CompiledRule, in_frames, secret_of
from moat.proxy.mcp import McpEndpoint
from moat.proxy.message import Body
from moat.proxy.registry import scope_of
from moat.proxy.render import request_fields, request_wire
from moat.proxy.request_body import FilteredBody, resized, resized_fields, substituted
from moat.proxy.signing import LONGEST_BODY, SIGNED_FIELDS, TOO_LONG, Signature, Signer, sign
from moat.proxy.site import Setup, Site
from moat.proxy.site_rules import Equipped, Fitting, SiteRules, equip, inspectable
from moat.proxy.substitute import Binding, Substitution, wanted_of
from moat.proxy.upload import Judged

NOTHING = Equipped(b"")
ReadBody = Callable[[Body | FilteredBody, int], Awaitable[bytes]]
"""Reads a request's body, or its beginning when it is longer than so many bytes."""


class Equipment:
    """What one request gets."""

    equipped = NOTHING
    swaps: tuple[tuple[bytes, bytes], ...] = ()  # placeholder -> secret in messages of a WebSocket
    _signature: Signature | None = None  # of the client, to be replaced
    _target = b""

    def __init__(self, setup: Setup, site: Site, number: int, head: RequestHead, read: ReadBody) -> None:
        """`number` is the exchange's."""
        self._setup = setup
        self._site = site
        self._number = number
        self._head = head
        self._read_body = read

    @property
    def unreadable(self) -> Unreadable:
        """What becomes of an answer that cannot be searched. What signs alone never leaves the host."""
        signature = self._signature
        only_signed = signature is not None and self.equipped.grants == (signature.credential,)
        return "pass" if only_signed else self._setup.unreadable

    async def put_on(
        self, target: bytes, mcp: McpEndpoint | None, body: Judged
    ) -> tuple[bytes, RequestHead, Judged]:
        """The head that goes upstream, with the credentials that policy and the table allow here.

        Then the head that tells how the body goes up, and the body. `target` is in origin-form. Raises
        DeniedError, RefusedError, MalformedError, StreamError.
        """
        head, site, rules = self._head, self._site, self._site.rules
        self._target = target
        if (signer := rules.signer) is not None:
            body = await self._read_signature(signer, *body)
        fields = request_fields(head)
        if not head.host:
            fields = b"\r\nHost: " + site.host + fields
        if mcp is not None:
            headers = mcp.readdressed(split_fields(fields))
            fields = join_fields(inspectable(headers) if mcp.policy is not None else headers)
        if rules.rules:
            fields = await self._inject(rules, fields)
        if rules.in_frames and head.upgrade == b"websocket":
            await self._prepare_frames(rules.in_frames)
            fields = join_fields(inspectable(split_fields(fields)))
        if self._signature is not None:
            return await self._sign(self._signature, fields), head, body
        if rules.bindings:
            return await self._substitute(rules.bindings, fields, body)
        return request_wire(head.method, target, fields), head, body

    async def _inject(self, rules: SiteRules, fields: bytes) -> bytes:
        try:
            fitting = rules.fitting(fields)
            credentials = [await self._credential(name) for name in self._asked(rules, fitting)]
            equipped = equip(fitting, credentials)
        except MoatError as error:
            raise _no_credential(error) from error
        self._use(equipped.grants)
        self.equipped = equipped
        return equipped.fields

    def _asked(self, rules: SiteRules, fitting: Fitting) -> Sequence[str]:
        """What a plan's credentials are asked for as: tokens are for no more than the request needs."""
        names = fitting.draft.credentials
        if not rules.tokens:
            return names
        scope = scope_of(self._head.method, self._target)
        return [part_of(name, scope) if name in rules.tokens else name for name in names]

    async def _read_signature(self, signer: Signer, body: Body | FilteredBody, start: bytes) -> Judged:
        """Find out what the client has signed; the body is read if it has to be. Raises DeniedError."""
        head = self._head
        signature = signer.read(head.method, self._target, head.headers)
        if signature is None:
            return body, start
        if signature.needs_body and not body.done:
            start += await self._read_body(body, LONGEST_BODY)
            if not body.done:
                raise RefusedError(failed(413, "signature", TOO_LONG, retry=False))
        self._signature = signer.check(signature, start, time())
        return body, start

    async def _sign(self, signature: Signature, fields: bytes) -> bytes:
        """The head that goes upstream, signed with the keys of the run's role."""
        name = signature.credential
        try:
            signed = sign(signature, fields, await self._credential(name), time())
        except MoatError as error:
            raise _no_credential(error) from error
        self._use_more(name)
        self._watch_for(signed.secrets)
        self.equipped = self.equipped._replace(names=self.equipped.names | SIGNED_FIELDS)
        return request_wire(self._head.method, signed.target, signed.fields)

    async def _prepare_frames(self, rules: Sequence[CompiledRule]) -> None:
        """Credentials that may go out in messages of a WebSocket. They count as used when it opens."""
        names = tuple(dict.fromkeys(rule.rule.credential for rule in rules))
        try:
            self.swaps, secrets = in_frames(rules, {name: await self._credential(name) for name in names})
        except MoatError as error:
            raise _no_credential(error) from error
        self._watch_for(secrets)
        for name in names:
            self._use_more(name)

    async def _substitute(
        self, bindings: Sequence[Binding], fields: bytes, judged: Judged
    ) -> tuple[bytes, RequestHead, Judged]:
        """As `put_on`, of a request that may carry credentials in its target or body. Raises DeniedError."""
        head, target = self._head, self._target
        wanted = wanted_of(bindings, target, body=head.framing is not NONE)
        if not wanted:
            return request_wire(head.method, target, fields), head, judged
        try:
            secrets = {
                name: secret_of(await self._credential(name), name)
                for name in {binding.credential for binding in wanted}
            }
        except MoatError as error:
            raise _no_credential(error) from error
        self._watch_for(secrets.values())
        substitution = Substitution(wanted, secrets, self._site.rules.where, self._use_more)
        target = substitution.target(target)
        fields = join_fields(inspectable(split_fields(fields)))
        body, start = judged
        if head.framing is not NONE and isinstance(body, Body):
            filtered = substituted(head, body, start, substitution, self._setup.limits)
            if filtered is not None:
                start, limit = b"", self._setup.limits.substituted
                if head.framing is LENGTH and head.length <= limit:
                    start = await self._read_body(filtered, limit)
                head = resized(head, len(start) if filtered.done else None)
                fields, judged = resized_fields(fields, head), (filtered, start)
        return request_wire(head.method, target, fields), head, judged

    def _watch_for(self, secrets: Iterable[bytes]) -> None:
        """Nothing of these comes back."""
        more = dict.fromkeys((*self.equipped.secrets, *secrets))
        self.equipped = self.equipped._replace(secrets=tuple(more))

    def _use_more(self, grant: str) -> None:
        """One more grant is on the request. Raises DeniedError."""
        grants = self.equipped.grants
        if grant not in grants:
            self._use((grant,))
            self.equipped = self.equipped._replace(grants=(*grants, grant))

    def _use(self, grants: tuple[str, ...]) -> None:
        """The last moment before a credential can leave: what cannot be recorded does not happen.

        Raises DeniedError.
        """
        if grants:
            refusal = self._setup.on_use(self._number, self._site.name, grants)
            if refusal is not None:
                raise DeniedError(refusal)

    async def _credential(self, name: str) -> Credential:
        source = self._setup.credentials
        if source is None:
            raise MoatError(f"no credential source for grant {name}")
        return await source.credential(name)  # keeps a deadline of its own: its owner may be asked to unlock


def _no_credential(error: MoatError) -> RefusedError:
    return RefusedError(failed(502, "credential", str(error), error.hint or "", retry=False))
