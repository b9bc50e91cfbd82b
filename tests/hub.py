"""A stand-in for the Hugging Face hub: as much of its HTTP API as is used here, served on this machine.

Repositories have one branch and are kept in memory. `broken` makes transfers of large files end in the middle.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_this_test"
USER = "someone"
LARGE = (".safetensors", ".parquet", ".gguf")
"""What the hub keeps with git-LFS."""


@dataclass
class Repo:
    """Files by their paths, and who may see them."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files))).encode()).hexdigest()

    @property
    def card(self) -> dict[str, Any]:
        front = re.match(r"---\n(.*?)\n---\n", self.files.get("README.md", b"").decode(), re.DOTALL)
        return yaml.safe_load(front[1]) if front else {}


@dataclass
class Hub:
    """Its state: repositories by kind (`models` or `datasets`) and name, large files by their SHA-256."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Methods (GET, PUT) whose transfers of large files break off."""
    asked: list[str] = field(default_factory=list)


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


class Client:
    """One process, which takes a stand-in for the hub: the hub's own client reads that when it is imported."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.home = home
        given = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with patch.dict(os.environ, given):
            self.pool.submit(int).result()  # starts it

    def __call__(self, *arguments: object, token: str | None = TOKEN) -> Result:
        """Run a command of `inheritune`."""
        return self.pool.submit(_command, [str(one) for one in arguments], token).result()

    def offline(self, yes: bool) -> None:
        """As with HF_HUB_OFFLINE."""
        self.pool.submit(_set_offline, yes).result()

    def read_model(self, name: str, output: Path) -> None:
        """As others read a model, whatever is in the cache; saved in a folder."""
        self.pool.submit(_read_model, name, output, self.home / "other").result()


def _command(arguments: list[str], token: str | None) -> Result:
    from inheritune.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["inheritune", *arguments]):
        os.environ.pop("HF_TOKEN", None)
        if token is not None:
            os.environ["HF_TOKEN"] = token
        console = importlib.import_module("inheritune.cli.console").console
        console.file = out
        code, sleep = 0, time.sleep
        try:
            with patch("time.sleep", lambda seconds: sleep(min(seconds, 0.01))):  # between the client's tries
                main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def _set_offline(yes: bool) -> None:
    importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE = yes


def _read_model(name: str, output: Path, cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(name, cache_dir=cache).save_pretrained(output)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests' output is for failures."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.command == "PUT" and "PUT" in self.hub.broken:
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._route(path, body)
        except _RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(b"{}", refused.status, headers)

    def _route(self, path: str, body: bytes) -> None:
        rest = path.removeprefix("/")
        if rest == "api/whoami-v2":
            self._need_token()
            self._json({"name": USER, "type": "user", "orgs": []})
        elif rest == "api/repos/create":
            self._create(json.loads(body))
        elif rest == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif rest.startswith("lfs/"):
            self.hub.large[rest.removeprefix("lfs/")] = body
            self._json({})
        elif batch := re.fullmatch(r"(.+)\.git/info/lfs/objects/batch", rest):
            self._writable(batch[1])
            self._batch(json.loads(body))
        elif call := re.fullmatch(r"api/(models|datasets)/([^/]+/[^/]+)(?:/([\w-]+)/(\w+)(?:/(.*))?)?", rest):
            kind, name, verb, revision, place = call.groups()
            self._api(self._repo(kind, name, revision or "main"), kind, name, verb, place or "", body)
        elif file := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", rest):
            self._file(self._repo("datasets" if file[1] else "models", file[2], file[3]), file[4])
        else:
            raise _RefusedError(404)

    def _api(self, repo: Repo, kind: str, name: str, verb: str | None, place: str, body: bytes) -> None:
        if verb in (None, "revision"):
            siblings = [{"rfilename": path} for path in repo.files]
            info = {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings}
            return self._json({**info, "tags": repo.card.get("tags", []), "cardData": repo.card})
        if verb == "tree":
            return self._json(self._tree(repo, place, "recursive=true" in self.path.lower()))
        if verb == "paths-info":
            wanted = re.findall(r"paths=([^&]+)", unquote(body.decode())) or json.loads(body)["paths"]
            return self._json([self._entry(path, repo.files[path]) for path in wanted if path in repo.files])
        self._writable(name)
        if verb == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in files
            ]
            return self._json({"files": modes})
        assert verb == "commit"
        return self._commit(repo, kind, name, [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> None:
        self._need_token()
        owner = wanted.get("organization") or USER
        if owner != USER:
            raise _RefusedError(403, message="You don't have the rights")
        name = f"{owner}/{wanted['name']}"
        self.hub.repos["models", name] = Repo(wanted["visibility"] == "private", {".gitattributes": b""})
        self._json({"url": f"{self.hub.url}/{name}"})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            if one["oid"] in self.hub.large
            else {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, kind: str, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
        repo.commits += 1
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}/commit/{repo.sha}"
        self._json({"commitUrl": url, "commitOid": repo.sha})

    def _file(self, repo: Repo, path: str) -> None:
        if path not in repo.files:
            raise _RefusedError(404, "EntryNotFound")
        data = repo.files[path]
        headers = {"X-Repo-Commit": repo.sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span and self.command == "GET":
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(data[first : last + 1], 206, headers)
        if self.command == "GET" and "GET" in self.hub.broken and path.endswith(LARGE):
            self._send(data, 200, headers, sent=len(data) // 2)
            self.close_connection = True
            return None
        return self._send(data, 200, headers)

    def _tree(self, repo: Repo, place: str, recursive: bool) -> list[dict[str, Any]]:
        top = f"{place}/" if place else ""
        inside = {path: data for path, data in repo.files.items() if path.startswith(top)}
        if place and not inside:
            raise _RefusedError(404, "EntryNotFound")
        deeper = {path for path in inside if "/" in path.removeprefix(top)}
        folders = {top + path.removeprefix(top).split("/")[0] for path in deeper}
        return [
            *({"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)),
            *(self._entry(path, data) for path, data in inside.items() if recursive or path not in deeper),
        ]

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": digest[:40]}
        return (
            {**entry, "lfs": {"oid": digest, "size": len(data), "pointerSize": 134}}
            if path.endswith(LARGE)
            else entry
        )

    def _repo(self, kind: str, name: str, revision: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self._known()):
            raise _RefusedError(404 if self._known() else 401, "RepoNotFound")
        if revision not in ("main", repo.sha):
            raise _RefusedError(404, "RevisionNotFound")
        return repo

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _need_token(self) -> None:
        if not self._known():
            raise _RefusedError(401, message="Invalid credentials")

    def _writable(self, name: str) -> None:
        self._need_token()
        if not name.startswith(f"{USER}/"):
            raise _RefusedError(403, message="You don't have the rights")

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):
                self.wfile.write(data[:sent])
