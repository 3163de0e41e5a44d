"""Images behind and inside URLs that may have been written by a stranger: fetched, or held by a data URL.

The host's addresses are looked up once, checked, and connected to as they are, so that a name can't be pointed elsewhere
between check and connection. Redirects are followed a few times, each checked anew.
"""

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from mllm.errors import UserError

MAX_BYTES = 20 * 2**20
TIMEOUT_S = 10.0
MAX_REDIRECTS = 3
CHUNK_BYTES = 64 * 1024
NAT64 = ipaddress.ip_network("64:ff9b::/96")


_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_DATA_URL = re.compile(r"\s*data:[^,]*?;\s*base64\s*,", re.IGNORECASE)
_WHITE_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def is_url(source: Path | str) -> bool:
    """Whether `source` is a string such as `https://…`, `hf://datasets/…`, `s3://…`, `file://…`."""
    return isinstance(source, str) and _URL.match(source) is not None


def is_data_url(text: str) -> bool:
    """Whether `text` begins as a data URL in base64 does."""
    return _DATA_URL.match(text) is not None


def data_url(content: bytes, media_type: str) -> str:
    """`content` as a data URL in base64."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def data_url_bytes(url: str, max_bytes: int, noun: str = "image") -> bytes:
    """What a base64 data URL holds; its media type isn't trusted, and any is taken.

    The base64 may be the URL-safe one, without padding, wrapped over lines, or percent-encoded. noun: "image" or "video", for
    messages. Raises UserError for what is no such URL or holds more than `max_bytes`.
    """
    header = _DATA_URL.match(url)
    if header is None:
        article, kind = ("an", "png") if noun == "image" else ("a", "mp4")
        raise UserError(f"{article} {noun} is sent as a data URL: data:{noun}/{kind};base64,…")
    payload = _WHITE_SPACE.sub("", unquote(url[header.end() :])).translate(_URL_SAFE).rstrip("=")
    if len(payload) * 3 // 4 > max_bytes:
        raise UserError(f"the {noun} has more than {max_bytes} bytes")
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the data URL is not valid base64") from None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet: not private, loopback, link-local, or of another special use."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Gateways pass these on to the IPv4 address inside.
        inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour
        if inside is not None:
            ip = inside
    return ip.is_global and not ip.is_multicast


def fetch_image(
    url: str, allow_private: bool = False, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES
) -> bytes:
    """The bytes behind an http or https URL. Raises UserError for another scheme, a private address unless allowed, any
    status but 200, more than `max_bytes`, or more than `timeout_s` in all."""
    deadline = time.monotonic() + timeout_s
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        try:
            status, location, body = _get(target, allow_private, deadline, max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = "it takes too long" if time.monotonic() >= deadline else error or type(error).__name__
            raise UserError(f"image URL {url!r} can't be fetched: {reason}") from None
        if location is None:
            if status != 200:
                raise UserError(f"image URL {url!r} can't be fetched: status {status}")
            return body
        target = urljoin(target, location)
    raise UserError(f"image URL {url!r} can't be fetched: more than {MAX_REDIRECTS} redirects")


@contextmanager
def _connected(parts: SplitResult, address: str, port: int, deadline: float) -> Iterator[socket.socket]:
    """A connection that is cut at the deadline: a socket's own timeout starts anew with each byte that trickles in."""
    wire = socket.create_connection((address, port), timeout=_left(deadline))
    if parts.scheme == "https":
        context = ssl.create_default_context()
        wire = context.wrap_socket(wire, server_hostname=parts.hostname, do_handshake_on_connect=False)
    watchdog = threading.Timer(_left(deadline), _cut, [wire])
    watchdog.daemon = True
    watchdog.start()
    try:
        if isinstance(wire, ssl.SSLSocket):
            wire.do_handshake()
        yield wire
        _left(deadline)  # what was read from a connection that was cut looks like a whole answer
    finally:
        watchdog.cancel()
        wire.close()


def _cut(wire: socket.socket) -> None:
    with suppress(OSError):
        # Of the plain class: an SSLSocket's own takes away what another thread is reading from.
        socket.socket.shutdown(wire, socket.SHUT_RDWR)


def _get(url: str, allow_private: bool, deadline: float, max_bytes: int) -> tuple[int, str | None, bytes]:
    """Status, where it redirects to (or None), and body of one request."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("only http and https URLs with a host are fetched")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = _address(parts.hostname, port, allow_private)
    with _connected(parts, address, port, deadline) as wire:
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = wire
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Host": parts.netloc.rpartition("@")[2], "User-Agent": "mllm"})
        response = connection.getresponse()
        location = response.getheader("Location") if response.status in (301, 302, 303, 307, 308) else None
        body = b""
        while response.status == 200 and len(body) <= max_bytes and (chunk := response.read1(CHUNK_BYTES)):
            body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes")
        return response.status, location, body


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return left


def _address(host: str, port: int, allow_private: bool) -> str:
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    private = [address for address in found if not is_public(address)]
    if private and not allow_private:
        raise ValueError(f"its host has the private address {private[0]}")
    return found[0]
