"""Which HTTP requests are let in: those meant for this service, that it and a proxy before it read alike."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from email.message import Message

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fintune.errors import UserError

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d*)?")  # RFC 9110, 7.2; a name of the user's may hold _
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
MOST_CHARACTERS = 500  # of an error's message, which may quote what was sent


class Guard:
    """ASGI middleware that refuses requests of another site's web page, and those that can be read in two ways.

    A browser lets any page send requests to an address such as 127.0.0.1. Such a request names the page in `Origin`,
    or where the page had its own name point at this machine (DNS rebinding), that name in `Host`.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Sequence[str], refused: Callable[[str, int], None]):
        """
        Args:
            host: the address that the service listens on.
            allowed_hosts: further names that requests may call it by, and whose pages may ask it; see `host_names`.
            refused: told the path and the status of each request that is not let in.
        """
        self.app, self.refused, self.allowed = app, refused, set(allowed_hosts)
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()} | self.allowed
        self.every_address = host in ("0.0.0.0", "::")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            self.refused(scope["path"], refusal.status_code)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        host, origins = headers.get("host", ""), headers.getlist("origin")
        if "content-length" in headers and "transfer-encoding" in headers:
            close = {"Connection": "close"}  # what follows may be the rest of this request, or another one
            return error_response(400, "give Content-Length or Transfer-Encoding, not both", close)
        if not self._is_own(_name(host)):
            return error_response(
                400, f"Host {host!r} is not this service; start it with --allowed-host for that name"
            )
        for origin in origins:
            if not self._may_ask(origin.lower(), host.lower()):
                return error_response(403, f"a page of {origin!r} may not ask; start with --allowed-host for its host")
        return None

    def _is_own(self, name: str | None) -> bool:
        return name in self.names or (self.every_address and name is not None and _is_address(name))

    def _may_ask(self, origin: str, host: str) -> bool:
        scheme, _, page = origin.partition("://")
        if scheme not in ("http", "https"):  # a browser's extension, a file, null
            return False
        return page == host or _name(page) in self.allowed  # a proxy may put its own into Host


def host_names(given: Sequence[str]) -> list[str]:
    """The names of `--allowed-host`, as they are compared.

    Raises:
        UserError: one of them is no name.
    """
    for name in given:
        if _name(name) != name.strip("[]").lower():
            raise UserError(f"--allowed-host {name!r} is no host name; give one such as labels.example.com")
    return [_name(name) for name in given]


def _name(host: str) -> str | None:
    """The name or address in a Host header, without port and brackets; None where it is none."""
    found = HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def unsupported(headers: Headers) -> str | None:
    """Why a request's body is not of a kind that is taken; None where it is JSON in UTF-8.

    Other kinds are refused whatever they hold: those are what a page may send to another site unasked.
    """
    encoding = ", ".join(headers.getlist("content-encoding"))
    if encoding.lower() not in ("", "identity"):
        return f"Content-Encoding {encoding!r} is not taken; send the JSON as it is"
    given = Message()
    given["Content-Type"] = headers.get("content-type", "")
    if given.get_content_type() != "application/json" or len(headers.getlist("content-type")) > 1:
        what = (
            f"Content-Type {headers['content-type']!r} is not taken"
            if "content-type" in headers
            else "no Content-Type"
        )
        return f"{what}; send JSON with the header 'Content-Type: application/json'"
    charsets = [str(value) for name, value in given.get_params([]) if name.lower() == "charset"]
    if foreign := [charset for charset in charsets if charset.lower() not in CHARSETS]:
        return f"charset {foreign[0]!r} is not taken; send the JSON in UTF-8"
    return None


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """One line, as {"error": "..."}."""
    if len(message) > MOST_CHARACTERS:
        message = f"{message[: MOST_CHARACTERS // 2]} ... {message[-MOST_CHARACTERS // 2 :]}"
    return JSONResponse({"error": message}, status, headers)
