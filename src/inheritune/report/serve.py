"""The page of a run while it runs, for a browser on this machine: `inheritune report RUN --serve`.

It reads the run's files and writes none; the page is made anew when it is asked for and a file has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from inheritune import UserError
from inheritune.report.run_report import run_page
from inheritune.report.runs import read_run

ADDRESS = "127.0.0.1"
REFRESH_SECONDS = 10
"""Between two looks of a browser at a run that is not finished; a page takes a second of one core."""


def serve(run: Path, port: int, tell: Callable[[str], None]) -> None:
    """Show the page of a run on a port of this machine until Ctrl-C; 0 takes any free one.

    Args:
        run: its directory.
        port: where to listen, on this machine's own address only.
        tell: is given the page's address.

    Raises:
        UserError: it is not a run directory or damaged, or the port cannot be had.
    """
    page = LivePage(run)
    page()
    try:
        server = _Server((ADDRESS, port), _Handler)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({os.strerror(error.errno or 0).lower()}): give another with --port"
        ) from error
    server.page = page
    with server, suppress(KeyboardInterrupt):
        tell(f"{run}: http://{ADDRESS}:{server.server_port}/ (until Ctrl-C)")
        server.serve_forever()


class LivePage:
    """The page of a run as its files are now; read by one at a time."""

    def __init__(self, run: Path) -> None:
        self.run, self.lock = run, Lock()
        self.seen: dict[Path, tuple[int, int]] | None = None
        self.html, self.finished = "", False

    def __call__(self) -> tuple[str, bool]:
        """The page as HTML, and whether the run is finished; UserError as of `read_run`."""
        with self.lock:
            seen = {}
            for path in (*self.run.glob("*.*"), *self.run.glob("*/*.json*")):
                with suppress(FileNotFoundError):  # replaced at this moment
                    seen[path] = path.stat().st_mtime_ns, path.stat().st_size
            if seen != self.seen:
                run = read_run(self.run)
                self.html, self.seen = run_page(run).html(), seen
                self.finished = run.state is not None and run.state.phase == "finished"
            return self.html, self.finished


class _Server(ThreadingHTTPServer):
    page: LivePage


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        # A site whose name was made to lead to this machine must not read the page.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (ADDRESS, "localhost"):
            return self.send_error(403)
        if self.path != "/":
            return self.send_error(404)
        try:
            (text, finished), kind = self.server.page(), "html"
        except UserError as error:  # while a file is exchanged for another one
            text, finished, kind = f"{error}\n", False, "plain"
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if not finished:
            self.send_header("Refresh", str(REFRESH_SECONDS))
        self.end_headers()
        with suppress(ConnectionError):  # the browser is gone
            self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Requests are nothing to tell."""
