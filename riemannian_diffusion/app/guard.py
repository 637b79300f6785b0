"""What stands between the network and the page: who may ask, from where, and how much.

`Guard` is an ASGI middleware, so that it covers every route of the server.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from riemannian_diffusion.app.quota import Quota

API = "/gradio_api"
OPEN = f"{API}/startup-events"  # gradio calls it before it serves; it tells and changes nothing
UNUSED = ("/proxy=", "/process_recording", "/stream/", "/vibe", "/monitoring", "/dev/", "/run-")
LEFTOVERS = 600  # seconds after which an upload that was never finished is deleted
MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """How much visitors may send and keep on the server.

    Attributes:
        file_bytes: Size of one uploaded file.
        upload_bytes: Size of one upload of several files.
        json_bytes: Size of any other request.
        folder_bytes: Size of all files of all visitors.
        folder_files: Number of all files of all visitors.
        address_uploads: Number of uploads from one address in `seconds`.
        address_bytes: Size of all uploads from one address in `seconds`.
        seconds: Age at which files and kept keyframes are deleted.
    """

    file_bytes: int = 30 * MEGABYTE
    upload_bytes: int = 100 * MEGABYTE
    json_bytes: int = MEGABYTE
    folder_bytes: int = 2000 * MEGABYTE
    folder_files: int = 5000
    address_uploads: int = 1000
    address_bytes: int = 500 * MEGABYTE
    seconds: int = 3600


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        text: What the visitor reads.
    """

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Guard:
    """Refuses requests of strangers, from foreign pages, and of too much.

    - A `Host` must be an IP address, this machine's or an allowed name. Otherwise a foreign page
      could point its own name at this machine (DNS rebinding).
    - An `Origin` must be the page itself, and a browser must not say that the request is from
      another site. Following a link to the page is allowed.
    - With `auth`, every request needs the name and the password (HTTP Basic).
    - Sizes are counted while they arrive, whatever the headers say.
    - Each address may upload so much in a time. Behind a proxy, that is the visitor's address if
      uvicorn trusts the proxy's `X-Forwarded-For`, by default on this machine.

    Args:
        app: The page.
        folder: Where gradio keeps uploads and results.
        auth: Name and password, or None.
        names: Names by which visitors reach this machine, beside "localhost".
        limits: How much visitors may send.
    """

    def __init__(
        self,
        app: ASGIApp,
        folder: Path,
        auth: tuple[str, str] | None = None,
        names: Collection[str] = (),
        limits: Limits | None = None,
    ):
        self.app, self.folder, self.auth, self.names = app, folder, auth, names
        self.limits = limits = limits or Limits()
        self.quota = Quota(limits.address_uploads, limits.address_bytes, limits.seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            began = True
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                own["X-Frame-Options"] = "SAMEORIGIN"  # no foreign page may show this one
                own["X-Content-Type-Options"] = "nosniff"
                own["Referrer-Policy"] = "same-origin"
            await send(message)

        try:
            self._check_origin(scope, headers)
            if scope["path"] != OPEN:
                self._check_visitor(headers)
            if scope["method"] not in ("GET", "HEAD"):
                receive = await self._checked_body(scope, headers, receive)
            await self.app(scope, receive, answer)
        except Refusal as refusal:
            if began:
                raise
            asks = {"WWW-Authenticate": 'Basic realm="morphs", charset="UTF-8"'}
            extra = asks if refusal.status == 401 else {}
            response = PlainTextResponse(str(refusal), refusal.status, extra)
            await response(scope, receive, answer)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_known(host):
            raise Refusal(
                421,
                f"This server does not answer to the name {host[:100]!r}. Whoever runs it can "
                "allow the name with --allow-host.",
            )
        if any(scope["path"].removeprefix(API).startswith(unused) for unused in UNUSED):
            raise Refusal(404, "The page has no such part.")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            raise Refusal(403, "Requests from other pages are refused.")
        follows_link = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not follows_link:
            raise Refusal(403, "Requests from other pages are refused.")

    def _is_known(self, host: str) -> bool:
        name = _name_of(f"//{host}")
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or name in {known.lower() for known in self.names}
        return True

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether an origin is this page, perhaps behind a proxy that has an allowed name."""
        if urlsplit(origin).netloc.lower() == host.lower():
            return urlsplit(origin).scheme in ("http", "https")
        return _name_of(origin) in {known.lower() for known in self.names}

    def _check_visitor(self, headers: Headers) -> None:
        if self.auth is None:
            return
        kind, _, code = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(code if kind.lower() == "basic" else "", validate=True)
        except (binascii.Error, ValueError):
            given = b""
        if not secrets.compare_digest(given, ":".join(self.auth).encode()):
            raise Refusal(401, "This page asks for a name and a password.")

    async def _checked_body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """A `receive` that refuses a request as soon as its body is too large."""
        is_upload = scope["path"].rstrip("/") == f"{API}/upload"
        most = self.limits.upload_bytes if is_upload else self.limits.json_bytes
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Refusal(400, "The length of the request is no number.")
        _check_size(int(length), most, is_upload)
        if not is_upload:
            body = await _whole(receive, most)
            if headers.get("content-type", "").startswith("application/json"):
                _check_json(body)
            return _replayed(body, receive)
        self._check_folder(int(length))
        address, num_bytes = (scope.get("client") or ("unknown",))[0], 0
        self._check_quota(address, uploads=1)

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            new = len(message.get("body", b""))
            num_bytes += new
            _check_size(num_bytes, most, is_upload)
            self._check_quota(address, num_bytes=new)
            return message

        return counted

    def _check_quota(self, address: str, **spent: int) -> None:
        if not self.quota.spend(address, **spent):
            raise Refusal(
                429,
                "From your address, as much has been uploaded as may be in "
                f"{self.limits.seconds // 60} minutes: try again later.",
            )

    def _check_folder(self, num_bytes: int) -> None:
        """Refuse an upload if the folder is full; delete what unfinished uploads left in it."""
        num, before = 0, time.time() - LEFTOVERS
        for file in self.folder.rglob("*"):
            try:
                if not file.is_file():
                    continue
                status = file.stat()
                if file.parent == self.folder and status.st_mtime < before:
                    file.unlink()
                    continue
            except FileNotFoundError:  # another request or gradio has deleted it
                continue
            num, num_bytes = num + 1, num_bytes + status.st_size
        if num >= self.limits.folder_files or num_bytes > self.limits.folder_bytes:
            raise Refusal(
                507,
                "The server holds as many files of visitors as it may. They are deleted after "
                f"{self.limits.seconds // 60} minutes: try again later.",
            )


def _name_of(url: str) -> str | None:
    """The host of a URL in lower case without its port, or None."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises ValueError for what is no port
    except ValueError:
        return None
    return None if parts.hostname is None or parts.username is not None else parts.hostname


def _check_size(num_bytes: int, most: int, is_upload: bool) -> None:
    if num_bytes > most:
        what = "These files are" if is_upload else "This request is"
        advice = " Upload fewer or smaller ones." if is_upload else ""
        raise Refusal(413, f"{what} too large: at most {most // MEGABYTE} MB.{advice}")


async def _whole(receive: Receive, most: int) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "The request ended early.")
        body += message.get("body", b"")
        _check_size(len(body), most, is_upload=False)
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive: Receive) -> Callable[[], Any]:
    """A body that was read, once more; then what follows it."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body}])

    async def replay() -> Message:
        message = next(messages, None)
        return await receive() if message is None else message

    return replay


def _check_json(body: bytes) -> None:
    """Refuse what is no JSON, and files that the server would have to fetch from elsewhere."""
    try:
        waiting = [json.loads(body or b"null")]
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The request is no valid JSON.") from error
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path:
                raise Refusal(400, "Images must be uploaded: the server fetches no addresses.")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
