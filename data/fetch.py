"""Images by URL, downloaded only when the user asks: http(s) alone, public addresses alone, within
limits."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pal.config import ImageSourceConfig
from pal.files import atomic_file
from pal.items import Image, Place, image_content_id, storable

BLOCK = 1 << 16


def fetch(
    url: str,
    folder: Path,
    largest: int,
    seconds: float,
    is_allowed: Any = lambda address: address.is_global,
) -> Path:
    """Return the file of a downloaded image; one that is there already is not downloaded again.

    Raises ValueError or OSError with the reason. ``largest`` is in bytes. ``is_allowed`` judges the
    address a host resolves to, before anything is sent to it and again at every redirection.
    """
    target = place_of(url, folder)
    if target.is_file():
        return target
    _require_web(url)
    began = time.monotonic()
    opener = urllib.request.build_opener(*_handlers(is_allowed))
    request = urllib.request.Request(url, headers={"User-Agent": "pal"})
    try:
        with (
            opener.open(request, timeout=seconds) as answer,
            atomic_file(target) as temporary,
            open(temporary, "wb") as stream,
        ):
            read = 0
            while block := answer.read1(BLOCK):  # what is there: a trickle is noticed too
                read += len(block)
                if read > largest:
                    raise ValueError(f"more than {largest:,} bytes")
                if time.monotonic() - began > seconds:
                    raise ValueError(f"not there after {seconds:g} s")
                stream.write(block)
            promised = answer.headers.get("Content-Length", "")
            if promised.isdecimal() and read < int(promised):
                raise ValueError(f"broke off after {read:,} of {int(promised):,} bytes")
    except urllib.error.URLError as error:  # its reason is what the connection raised
        if isinstance(error.reason, Exception):
            raise error.reason from error
        raise
    return target


def place_of(url: str, folder: Path) -> Path:
    """Return the file that an image by URL is downloaded to."""
    return (
        folder / hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    )


def fetched_image(url: str, config: ImageSourceConfig) -> Image | str:
    """Return an image that is or, with ``fetch_images``, can be downloaded, or why there is
    none."""
    if not (config.fetch_images or place_of(url, config.image_folder).is_file()):
        return (
            f"{storable(url[:200])} is a URL; download it with --fetch-images, or use a source "
            "that has the images"
        )
    try:
        path = fetch(url, config.image_folder, config.largest_image, config.fetch_seconds).resolve()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return storable(f"{url[:200]}: {type(error).__name__}: {error}"[:400])
    return Image(Place(str(path)), image_content_id(path.read_bytes()))


def _require_web(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http(s) address")


def _handlers(is_allowed: Any) -> list[urllib.request.BaseHandler]:
    """Return handlers whose every connection goes to an allowed address; proxies of the environment
    are not used."""

    def connect(
        address: tuple[str, int], timeout: Any = None, source_address: Any = None
    ) -> socket.socket:
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = [ipaddress.ip_address(str(place[4][0]).partition("%")[0]) for place in found]
        refused = [place for place in places if not is_allowed(place)]
        if refused or not places:
            raise ValueError(
                f"{host} leads to {refused[0] if refused else 'no address'}, which is not a "
                "public one"
            )
        return socket.create_connection((str(places[0]), port), timeout, source_address)

    def through(connection: type[http.client.HTTPConnection]) -> Any:
        def build(host: str, **settings: Any) -> http.client.HTTPConnection:
            made = connection(host, **settings)
            made._create_connection = connect  # type: ignore[attr-defined]
            return made

        return build

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(through(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(through(http.client.HTTPSConnection), req)

    class Redirect(urllib.request.HTTPRedirectHandler):
        max_redirections = 3

        def redirect_request(
            self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> Any:
            _require_web(newurl)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return [urllib.request.ProxyHandler({}), Http(), Https(), Redirect()]
