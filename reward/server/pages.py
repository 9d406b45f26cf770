"""What a browser is shown: at / a page to try the model on, at /docs the document of the routes.

All files are served from here, and the policy sent with them lets a page ask nobody else and run
nothing that stands in it. They hold no data: the page asks for that with the caller's token.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from pal.reward.server.document import as_html

SCRIPT, STYLE, HTML = "text/javascript", "text/css", "text/html"
FILES = {
    "/": ("index.html", HTML),
    "/page/page.css": ("page.css", STYLE),
    "/page/page.js": ("page.js", SCRIPT),
    "/page/server.js": ("server.js", SCRIPT),
    "/page/elements.js": ("elements.js", SCRIPT),
    "/page/compare.js": ("compare.js", SCRIPT),
    "/page/interview.js": ("interview.js", SCRIPT),
    "/page/ranking.js": ("ranking.js", SCRIPT),
}
"""what is served as it is, by path"""
DOCS = "/docs"
PAGES = {*FILES, DOCS}
NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""no address, no form and no frame leads from or to elsewhere"""
POLICIES = {
    "/": f"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src "
    f"'self'; require-trusted-types-for 'script'; trusted-types 'none'; {NOTHING_ELSE}",
    DOCS: f"default-src 'none'; style-src 'self'; img-src data:; {NOTHING_ELSE}",
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(app: FastAPI, summary: str) -> APIRouter:
    """Return the routes of the pages; ``app`` has the routes that /docs tells of."""
    router = APIRouter(include_in_schema=False)
    for path in FILES:
        router.add_api_route(path, serve_file, methods=["GET", "HEAD"])

    @router.api_route(DOCS, methods=["GET", "HEAD"])
    async def docs() -> Response:
        return _reply(DOCS, document(), HTML)

    @cache
    def document() -> bytes:
        return as_html(app.openapi(), summary).encode()

    return router


async def serve_file(request: Request) -> Response:
    path = request.scope["route"].path
    name, kind = FILES[path]
    return _reply(path, page_file(name), kind)


@cache
def page_file(name: str) -> bytes:
    """Return a file of the page."""
    return (files("pal.reward.server") / "page" / name).read_bytes()


def _reply(path: str, body: bytes, kind: str) -> Response:
    policy = POLICIES.get(path, "default-src 'none'")
    headers = {**HEADERS, "Content-Security-Policy": policy}
    return Response(body, headers=headers, media_type=f"{kind}; charset=utf-8")
