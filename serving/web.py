"""The pages, to chat and to label, as they lie in serving/page/, under rules by which a browser loads nothing else."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.dialects.strict import ApiError

PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # asked for again each time, and sent again where it is another
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def routes() -> APIRouter:
    router = APIRouter()
    # Read once: what a client names is looked up here and never in a folder.
    files = {path.name: (path.read_bytes(), _KINDS[path.suffix]) for path in PAGE.iterdir() if path.suffix in _KINDS}
    marks = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, (content, _) in files.items()}

    def sent(name: str, http: Request) -> Response:
        if name not in files:
            raise ApiError(404, f"the page has no file {name[:100]!r}", code="not_found")
        content, kind = files[name]
        headers = _HEADERS | {"ETag": marks[name]}
        if http.headers.get("if-none-match") == marks[name]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    @router.get("/")
    async def index(http: Request) -> Response:
        return sent("index.html", http)

    @router.get("/label")
    async def label(http: Request) -> Response:
        return sent("label.html", http)

    @router.get("/page/{name}")
    async def file(name: str, http: Request) -> Response:
        return sent(name, http)

    return router
