"""Images by URL: http(s) alone, public addresses alone, within limits, and whole or not at all."""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from pal import pipeline
from pal.cli.app import app
from pal.config import Config
from pal.data import fetch as module
from pal.data.fetch import fetch, place_of
from pal.errors import DataError

Configure = Callable[..., Config]
FOLDER = Path("images")
LARGEST, SECONDS = 100_000, 5.0
REDIRECTIONS = {
    "/to-file": "file:///etc/passwd",
    "/to-ftp": "ftp://127.0.0.1/x",
    "/to-metadata": "http://169.254.169.254/latest",
    "/to-local": "http://127.0.0.2/x",
    "/to-itself": "/to-itself",
    "/to-good": "/good.png",
}


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (3, 3), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue()


class Server(ThreadingHTTPServer):
    """Serves good and bad answers, and remembers every connection and every path that was asked
    for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.connections = 0
        self.paths: list[str] = []
        self.agents: set[str | None] = set()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.connections += 1
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side breaks off, as it should."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"


class Answers(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def begin(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.paths.append(self.path)
        self.server.agents.add(self.headers["User-Agent"])
        if path in REDIRECTIONS:
            self.begin(302, Location=REDIRECTIONS[path], Content_Length="0")
        elif path == "/announced":
            self.begin(Content_Length=str(LARGEST * 3))
            self.wfile.write(b"x" * LARGEST * 3)
        elif path == "/unannounced":
            self.begin()
            self.wfile.write(b"x" * LARGEST * 3)
        elif path == "/silent":
            time.sleep(1.0)
        elif path == "/trickle":
            self.begin(Content_Length="100")
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.03)
        elif path == "/cut":
            self.begin(Content_Length="1000")
            self.wfile.write(b"x" * 10)
        elif path == "/cut-chunked":
            self.protocol_version = "HTTP/1.1"
            self.begin(Transfer_Encoding="chunked")
            self.wfile.write(b"400\r\nxx")
            self.close_connection = True
        elif path == "/chunked":
            self.protocol_version = "HTTP/1.1"
            self.begin(Transfer_Encoding="chunked")
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            self.close_connection = True
        elif path == "/nonsense":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        elif path.endswith(".png"):
            number = int(self.path.partition("?n=")[2] or 0)
            self.begin(Content_Length=str(len(picture(number))))
            self.wfile.write(picture(number))
        else:
            self.begin(404, Content_Length="0")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(
            target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def only_the_test_server(address: Any) -> bool:
    return bool(address == ipaddress.ip_address("127.0.0.1"))


def got(url: str, largest: int = LARGEST, seconds: float = SECONDS) -> Path:
    return fetch(url, FOLDER, largest, seconds, only_the_test_server)


def assert_nothing_is_left() -> None:
    assert not FOLDER.exists() or not list(FOLDER.iterdir())


def test_an_image_is_downloaded_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # the environment's proxies are not used
    url = server.url("/good.png")
    first = got(url)
    assert first.read_bytes() == picture(0)
    assert got(url) == first == place_of(url, FOLDER)
    assert server.paths == ["/good.png"]
    assert server.agents == {"pal"}
    assert got(server.url("/good.png?n=1")).read_bytes() == picture(
        1
    )  # each URL has a file of its own
    assert len(list(FOLDER.iterdir())) == 2


def test_a_file_that_is_there_needs_no_server() -> None:
    FOLDER.mkdir()
    place_of("http://gone.invalid/a.png", FOLDER).write_bytes(b"old")
    assert fetch("http://gone.invalid/a.png", FOLDER, LARGEST, SECONDS).read_bytes() == b"old"


def test_redirections_within_the_rules_are_followed(server: Server) -> None:
    assert got(server.url("/to-good")).read_bytes() == picture(0)


def test_chunks_are_put_together(server: Server) -> None:
    assert got(server.url("/chunked")).read_bytes() == b"abcde"


def test_exactly_the_largest_size_is_not_too_large(server: Server) -> None:
    size = len(picture(0))
    assert got(server.url("/good.png"), largest=size).stat().st_size == size
    with pytest.raises(ValueError, match=f"more than {size - 1} bytes"):
        got(server.url("/good.png?n=2"), largest=size - 1)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("/announced", ValueError, "more than 100,000 bytes"),
        ("/unannounced", ValueError, "more than 100,000 bytes"),
        ("/cut", ValueError, "broke off after 10 of 1,000 bytes"),
        ("/cut-chunked", HTTPException, "IncompleteRead"),
        ("/nonsense", HTTPException, "this is no HTTP"),
        ("/missing", urllib.error.HTTPError, "404"),
        (
            "/to-file",
            urllib.error.HTTPError,
            "Redirection to url 'file:///etc/passwd' is not allowed",
        ),
        ("/to-ftp", ValueError, r"'ftp://127.0.0.1/x' is no http\(s\) address"),
        ("/to-metadata", ValueError, "leads to 169.254.169.254, which is not a public one"),
        ("/to-local", ValueError, "leads to 127.0.0.2"),
        ("/to-itself", urllib.error.HTTPError, "redirect"),
    ],
)
def test_a_bad_answer_is_an_error_and_leaves_no_file(
    path: str, error: type[Exception], words: str, server: Server
) -> None:
    with pytest.raises(error, match=words):
        got(server.url(path))
    assert len(server.paths) <= 5  # redirections come to an end
    assert_nothing_is_left()


@pytest.mark.parametrize("path", ["/silent", "/trickle"])
def test_a_slow_answer_is_given_up_in_time(path: str, server: Server) -> None:
    began = time.monotonic()
    with pytest.raises((ValueError, TimeoutError)):
        got(server.url(path), seconds=0.2)
    assert time.monotonic() - began < 1.0
    assert_nothing_is_left()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "data:image/png;base64,AAAA",
        "a.png",
        "http:///a.png",
        "",
    ],
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no http\(s\) address"):
        fetch(url, FOLDER, LARGEST, SECONDS, lambda address: True)
    assert_nothing_is_left()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]",
        "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "user@127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused_before_anything_is_sent(
    host: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *given, **_: connected.append(given))
    with pytest.raises((ValueError, OSError)) as caught:
        fetch(server.url("/good.png", host), FOLDER, LARGEST, SECONDS)
    if "@" not in host:
        assert "which is not a public one" in str(caught.value)
    assert not connected
    assert server.connections == 0
    assert_nothing_is_left()


def test_the_judged_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]]
    connected: list[Any] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in answers.pop(0)
        ]

    def connect(address: Any, *_: Any) -> socket.socket:
        connected.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(OSError, match="no network here"):
        fetch("http://rebinding.example/a.png", FOLDER, LARGEST, SECONDS)
    assert connected == [
        ("93.184.216.34", 80)
    ]  # a second look at the name would have found another one
    for _ in range(2):
        with pytest.raises(ValueError, match=r"rebinding.example leads to (127.0.0.1|10.0.0.1)"):
            fetch("http://rebinding.example/a.png", FOLDER, LARGEST, SECONDS)
    assert len(connected) == 1


def write_rows(server: Server, extra: tuple[str, ...] = ()) -> Path:
    """Write comparisons of images by URL, sixty of them good."""
    file = Path("raw") / "rows.jsonl"
    file.parent.mkdir()
    sides = [(server.url(f"/a.png?n={n}"), server.url(f"/a.png?n={n + 500}")) for n in range(60)]
    sides += [(url, server.url("/a.png?n=0")) for url in extra]
    rows = [{"prompt": f"draw {n}", "chosen": a, "rejected": b} for n, (a, b) in enumerate(sides)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file.parent


def settings(configure: Configure, source: Path | None, fetch_images: bool = False) -> Config:
    chosen = {"data.pairs.source": str(source)} if source else {}
    return configure({"dataset": "pairs", "data.pairs.fetch_images": fetch_images, **chosen})


def test_urls_are_rejects_that_name_the_option_unless_the_user_asks(
    configure: Configure, server: Server
) -> None:
    source = write_rows(server)
    texts = [
        {"prompt": f"say {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)
    ]
    (source / "texts.jsonl").write_text("\n".join(json.dumps(row) for row in texts))
    dataset = pipeline.prepare(settings(configure, source))
    assert dataset.card.rejects == {"no-image": 60}
    messages = pl.DataFrame(pl.from_arrow(dataset.rejects()))["message"]
    assert messages.str.contains("is a URL; download it with --fetch-images", literal=True).all()
    assert (server.connections, Path("data/images").exists()) == (0, False)


def test_the_default_rule_holds_when_preparing(configure: Configure, server: Server) -> None:
    source = write_rows(server)
    with pytest.raises(DataError, match="no comparison was found in .*60 no-image"):
        pipeline.prepare(settings(configure, source, fetch_images=True))
    assert server.connections == 0


def test_fetched_images_stay_usable_without_the_option(
    configure: Configure, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fetch", partial(fetch, is_allowed=only_the_test_server))
    bad = (
        server.url("/missing.jpg"),
        "http://\ud800.invalid/a.png",
        "http://[::1/a.png",
        "http://127.0.0.1:x/a.png",
    )
    source = write_rows(server, bad)
    arguments = [
        "prepare",
        "--dataset",
        "pairs",
        "--source",
        str(source),
        "--fetch-images",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout)
    assert (card["counts"]["pairs"], card["rejects"]) == (60, {"no-image": 4})
    assert card["counts"]["items_by_modality"]["image"] == 120
    messages = "\n".join(pl.read_parquet("data/pairs/rejects.parquet")["message"])
    assert "HTTPError: HTTP Error 404" in messages
    assert "\\ud800" in messages
    assert len(list(Path("data/images").iterdir())) == 120
    asked = server.connections
    again = pipeline.prepare(settings(configure, None)).card  # as pal embed and pal train do
    assert again.digests.model_dump() == card["digests"]
    assert again.split_digest == card["split_digest"]
    assert server.connections == asked


def test_fetching_for_a_dataset_without_images_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["prepare", "--dataset", "demo", "--fetch-images"])
    assert result.exit_code == 1
    assert "unknown key of data.demo 'fetch_images'" in str(result.exception)
