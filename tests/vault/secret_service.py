"""A Secret Service as KWallet's is one, which misbehaves on request: `python -m tests.vault.secret_service MODE`.

Like KWallet it knows plain sessions only, has no collection before the first one is made, and lets a dialog confirm
that. The dialog is answered by MODE:

    well            everything works
    dismiss         the user closes the dialog that would unlock the wallet
    dismiss-first   the user closes the dialog that would make the first wallet
    dies            it ends in the middle of storing an item, after a probe; D-Bus cannot start another
    refuses         after a probe it answers with an error that quotes the secret
    forgets         it finds nothing of what it has stored
    garbles         it gives back something else
    hangs           the dialog stays open for ever
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageType, message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import new_error, new_method_return, new_signal

ROOT = "/org/freedesktop/secrets"
WALLET, PROMPT, SESSION = f"{ROOT}/collection/kdewallet", f"{ROOT}/prompt/p1", f"{ROOT}/session/s1"
PREFIX = "org.freedesktop.Secret."


class Service:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.exists = mode == "dismiss"
        self.locked = mode == "dismiss"
        self.items: dict[str, tuple[dict[str, str], bytes]] = {}
        self.connection = open_dbus_connection()
        self.connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.secrets"))

    def serve(self) -> None:
        while True:
            message = self.connection.receive()
            if message.header.message_type is MessageType.method_call:
                self.connection.send(self.answer(message))
                self.after()

    def answer(self, message: Message) -> Message:
        fields = message.header.fields
        interface, member = fields.get(HeaderFields.interface, ""), fields[HeaderFields.member]
        path = fields[HeaderFields.path].replace(f"{ROOT}/aliases/default", WALLET)
        self.after: Callable[[], None] = lambda: None
        handler = getattr(self, "do_" + re.sub(r"(?<!^)(?=[A-Z])", "_", member).lower(), None)
        if (
            handler is None
            or (path == WALLET and not self.exists)
            or (path.startswith(f"{WALLET}/") and path not in self.items)
        ):
            return new_error(
                message, "org.freedesktop.DBus.Error.UnknownObject", "s", (f"no {path} {interface}.{member}",)
            )
        try:
            signature, body = handler(path, *message.body)
        except PermissionError as error:
            return new_error(message, "org.freedesktop.DBus.Error.NotSupported", "s", (str(error),))
        return new_method_return(message, signature, body)

    # --- Service ---------------------------------------------------------------------------------

    def do_open_session(self, _path: str, algorithm: str, _input: Any) -> tuple[str, tuple[Any, ...]]:
        if algorithm != "plain":
            raise PermissionError("plain only")
        return "vo", (("s", ""), SESSION)

    def do_create_collection(self, *_: Any) -> tuple[str, tuple[Any, ...]]:
        return "oo", ("/", PROMPT)

    def do_unlock(self, _path: str, objects: list[str]) -> tuple[str, tuple[Any, ...]]:
        return ("aoo", ([], PROMPT)) if self.locked else ("aoo", (objects, "/"))

    def do_prompt(self, *_: Any) -> tuple[str, tuple[Any, ...]]:
        if self.mode != "hangs":
            self.after = self.completed
        return "", ()

    def completed(self) -> None:
        dismissed = self.mode.startswith("dismiss")
        if not dismissed:
            self.exists, self.locked = True, False
        emitter = DBusAddress(PROMPT, interface=f"{PREFIX}Prompt")
        result: tuple[str, Any] = ("o", "/" if dismissed else WALLET)
        if self.mode == "dismiss":
            result = ("ao", [])  # of Unlock
        self.connection.send(new_signal(emitter, "Completed", "bv", (dismissed, result)))

    # --- Collection and Item -----------------------------------------------------------------------

    def do_get(self, path: str, _interface: str, name: str) -> tuple[str, tuple[Any, ...]]:
        values: dict[str, tuple[str, Any]] = {
            "Label": ("s", "kdewallet"),
            "Locked": ("b", self.locked),
            "Items": ("ao", list(self.items)),
            "Collections": ("ao", [WALLET] if self.exists else []),
            "Attributes": ("a{ss}", self.items.get(path, ({}, b""))[0]),
        }
        return "v", (values[name],)

    def do_search_items(self, _path: str, wanted: dict[str, str]) -> tuple[str, tuple[Any, ...]]:
        found = [path for path, (attributes, _) in self.items.items() if wanted.items() <= attributes.items()]
        return "ao", ([] if self.mode == "forgets" else found,)

    def do_create_item(
        self, _path: str, properties: dict[str, Any], secret: Any, _replace: bool
    ) -> tuple[str, tuple[Any, ...]]:
        attributes = properties[f"{PREFIX}Item.Attributes"][1]
        probe = attributes["username"].startswith("probe/")  # what a client tries a wallet with
        if self.mode == "dies" and not probe:
            os._exit(1)
        if self.mode == "refuses" and not probe:
            raise PermissionError(f"cannot store {secret[2].decode()}")
        path = f"{WALLET}/{len(self.items)}x{abs(hash(tuple(attributes.items())))}"
        self.items[path] = (attributes, secret[2])
        return "oo", (path, "/")

    def do_get_secret(self, path: str, _session: str) -> tuple[str, tuple[Any, ...]]:
        secret = self.items[path][1]
        value = secret[::-1] if self.mode == "garbles" else secret
        return "(oayays)", ((SESSION, b"", value, "text/plain"),)

    def do_delete(self, path: str) -> tuple[str, tuple[Any, ...]]:
        self.items.pop(path, None)
        return "o", ("/",)


if __name__ == "__main__":
    service = Service(sys.argv[1])
    print(os.environ["DBUS_SESSION_BUS_ADDRESS"], flush=True)
    service.serve()
