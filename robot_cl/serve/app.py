"""The pages of `robot-cl serve`: a list of runs, a page per run with live curves, files, skills. Nothing is written.

Only GET and HEAD are answered, only requests addressed to this machine by one of its loopback names (so that no web
page can reach in through a name of its own), and pages may load nothing from elsewhere. A list is rendered at most
every two seconds; readers in between get the same bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robot_cl.serve import files, live
from robot_cl.serve.files import RefusedError
from robot_cl.serve.index import RunIndex, ordered, search
from robot_cl.serve.pages import Pages
from robot_cl.serve.skills import skill, skills

HOSTS = ("127.0.0.1", "localhost")
PER_PAGE, MAX_QUERY, KEPT = 100, 200, 256
MOMENT, AGE = 2.0, 10.0  # seconds a list is kept while runs change, and while they do not (it shows how long ago)
# Our own pages run one script of ours. A report is one file with its styles and script inside; whatever else it may
# hold, it is kept from reading this server's other pages.
OURS = "script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; connect-src 'self'"
PAGE = "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:; sandbox allow-scripts"
END = "; default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"

Handler = Callable[[Request], Awaitable[Response]]


class Browser:
    """The handlers. Remembers the index, the library's folder, and rendered pages of the newest state."""

    def __init__(self, index: RunIndex, library: Path):
        self.index, self.library, self.pages = index, library, Pages()
        self._making: dict[tuple[Any, ...], asyncio.Task[Any]] = {}
        self._kept: OrderedDict[tuple[Any, ...], tuple[int, float, Response]] = OrderedDict()

    async def runs(self, request: Request) -> Response:
        """The list: ?q= words to search for, ?sort= a column, ?page= from 1."""
        query, sort, page = _list_options(request)
        snapshot, now = self.index.snapshot, self.index.now()
        as_json = request.url.path.startswith("/api/")

        def make() -> Response:
            found = search(snapshot.lines, query)  # newest first already
            found = found if sort == "-changed" else ordered(found, sort)
            shown = found[(page - 1) * PER_PAGE : page * PER_PAGE]
            if as_json:
                rows = [asdict(line) | {"label": line.label, "live": line.live(now)} for line in shown]
                return JSONResponse({"found": len(found), "page": page, "complete": snapshot.complete, "runs": rows})
            return self.pages.runs(self.index.root, snapshot, shown, len(found), query, sort, page, PER_PAGE, now)

        return self._recent(("runs", as_json, query, sort, page), snapshot.version, now, make)

    async def run(self, request: Request) -> Response:
        """One run: what is known, its curves, its films and files."""
        path = self._run(request)
        return await asyncio.to_thread(self.pages.run, path, self.index.line(path.name), self.index.now())

    async def curves(self, request: Request) -> Response:
        """Curves as JSON with an ETag, so that a reader who has them hears 304."""
        path = self._run(request)
        tag = f'"{live.stamp(path)}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        key = ("curves", path.name, tag)
        if key in self._kept:
            return self._kept[key][2]
        files.file(path, "metrics.csv")
        found = await self._shared(key, lambda: live.curves(path))
        return self._keep(key, 0, 0.0, JSONResponse(found, headers={"etag": tag}))

    async def report(self, request: Request) -> Response:
        """The page that `robot-cl report` wrote."""
        path = self._run(request)
        if not (path / "report.html").is_file():
            raise RefusedError(404, f"no report yet; write it with: robot-cl report {path.name}")
        return _sent(files.file(path, "report.html"))

    async def file(self, request: Request) -> Response:
        return _sent(files.file(self._run(request), request.path_params["inside"]))

    async def skills(self, request: Request) -> Response:
        now, made = self.index.now(), self._kept.get(("skills",))
        if made is not None and now - made[1] < MOMENT:
            return made[2]
        page = await self._shared(("skills",), lambda: self.pages.skills(self.library, skills(self.library)))
        return self._keep(("skills",), 0, now, page)

    async def skill(self, request: Request) -> Response:
        base, name = request.path_params["base"], request.path_params["name"]
        return self.pages.skill(await asyncio.to_thread(skill, self.library, base, name))

    async def asset(self, request: Request) -> Response:
        return self.pages.asset(request.path_params["name"])

    def _run(self, request: Request) -> Path:
        path = files.folder(self.index.root, request.path_params["name"])
        if not (path / "config.yaml").is_file():
            raise RefusedError(404, f"{path.name!r} is not a run: it has no config.yaml")
        return path

    async def _shared(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` makes on a thread; whoever asks for the same meanwhile waits for the same."""
        if key not in self._making:
            self._making[key] = asyncio.create_task(asyncio.to_thread(make))
        try:
            return await asyncio.shield(self._making[key])
        finally:
            self._making.pop(key, None)

    def _recent(self, key: tuple[Any, ...], version: int, now: float, make: Callable[[], Response]) -> Response:
        """What was made last, if the folder has not changed since, or only a moment ago; else made anew."""
        made = self._kept.get(key)
        if made is not None and now - made[1] < (MOMENT if version != made[0] else AGE):
            return made[2]
        return self._keep(key, version, now, make())

    def _keep(self, key: tuple[Any, ...], version: int, now: float, response: Response) -> Response:
        self._kept.pop(key, None)
        self._kept[key] = (version, now, response)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return response


def _list_options(request: Request) -> tuple[str, str, int]:
    given = request.query_params
    query, sort, page = given.get("q", "").strip(), given.get("sort", "-changed"), given.get("page", "1")
    if len(query) > MAX_QUERY or not page.isdecimal() or not 1 <= int(page[:7]) <= 1_000_000:
        raise RefusedError(400, "the search is too long, or the page is not a number from 1")
    return query, sort, int(page)


def _sent(path: Path) -> Response:
    policy = PAGE if path.suffix in (".html", ".svg") else OURS
    headers = {"content-security-policy": policy + END, "cache-control": "no-cache"}
    return FileResponse(path, media_type=files.TYPES[path.suffix], headers=headers)


class ReadOnly:
    """Headers for every answer; any method but GET and HEAD is refused before it is routed."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                for name, value in GUARDS:
                    if name not in names:
                        message["headers"].append((name, value))
            await send(message)

        if scope["method"] not in ("GET", "HEAD"):
            await Response("this server only reads", 405, {"allow": "GET, HEAD"})(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


GUARDS = (
    (b"content-security-policy", (OURS + END).encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def make_app(index: RunIndex, library: Path) -> Starlette:
    """The application; the caller starts and ends `index`'s watch."""
    browser = Browser(index, library)

    async def refused(request: Request, problem: Exception) -> Response:
        status = problem.status if isinstance(problem, RefusedError) else 400
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": str(problem)}, status)
        return browser.pages.problem(status, str(problem))

    async def nowhere(request: Request, problem: Exception) -> Response:
        return browser.pages.problem(404, "this path leads nowhere")

    async def home(request: Request) -> Response:
        return RedirectResponse("/runs", 307)

    routes = [
        Route("/", home), Route("/runs", browser.runs), Route("/api/runs", browser.runs),
        Route("/runs/{name}", browser.run), Route("/runs/{name}/report", browser.report),
        Route("/runs/{name}/files/{inside:path}", browser.file), Route("/api/runs/{name}/curves", browser.curves),
        Route("/skills", browser.skills), Route("/skills/{base}/{name}", browser.skill),
        Route("/page/{name}", browser.asset),
    ]  # fmt: skip
    own = Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False)
    handlers: dict[Any, Any] = {RefusedError: refused, ValueError: refused, 404: nowhere}
    return Starlette(routes=routes, middleware=[Middleware(ReadOnly), own], exception_handlers=handlers)

