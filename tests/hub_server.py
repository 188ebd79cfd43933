"""A server on this machine that speaks the Hub's protocol, as far as huggingface_hub and headstart
use it, with failures on request.

Files are served as the Hub does: small ones directly, large ones by a redirect to a "content"
address with their SHA-256 as the tag.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1000  # bytes from which on a file counts as large here


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        status: Answer with this status instead.
        headers: With these headers.
        drop_after: Close the connection after so many bytes of the body.
        lie: Announce so many bytes more than there are.
        no_length: Do not say how long the body is; its end is the end of the connection.
        ignore_range: Send everything although only the rest was requested.
        times: How often.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    lie: int = 0
    no_length: bool = False
    ignore_range: bool = False
    times: int = 1


@dataclass
class Repo:
    """A model: its files at every revision, pull requests, and who may read it."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    discussions: list[dict[str, Any]] = field(default_factory=list)
    token: str | None = None
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, or the commit itself."""
        for branch, files in self.revisions.items():
            made = hashlib.sha1(
                repr(
                    (branch, sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items()))
                ).encode()
            ).hexdigest()
            if revision in (branch, made):
                return made
        return None

    def files(self, revision: str) -> dict[str, bytes]:
        """The files at a branch or commit."""
        return next(
            files
            for branch, files in self.revisions.items()
            if revision in (branch, self.commit(branch))
        )


class HubServer(ThreadingHTTPServer):
    """The server. `url` is its address.

    `requests` lists (method, path, Range) of everything requested.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # another host, as the Hub's content servers are
        self.content_url = self.url.replace("127.0.0.1", "localhost")
        self.repos: dict[str, Repo] = {}
        self.plain: dict[str, bytes] = {}  # files at an authors' address: /files/…
        self.uploaded: dict[str, bytes] = {}
        self.faults: list[tuple[str, str, Fault]] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: list[str | None] = []

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main", **facts: Any) -> Repo:
        """Adds files to a model."""
        made = self.repos.setdefault(repo, Repo(**facts))
        made.revisions.setdefault(revision, {}).update(files)
        return made

    def fail(self, method: str, path: str, **fault: Any) -> None:
        """The next requests of this method whose path contains `path` go wrong."""
        self.faults.append((method, path, Fault(**fault)))

    def fault(self, method: str, path: str) -> Fault:
        """What goes wrong with this request."""
        for known, part, fault in self.faults:
            if known == method and part in path and fault.times > 0:
                fault.times -= 1
                return fault
        return Fault(times=0)

    def count(self, method: str, part: str) -> int:
        """How many requests of this method there were whose path contains `part`."""
        return sum(known == method and part in path for known, path, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        self.server.tokens.append(
            (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        )
        fault = self.server.fault(self.command, path)
        if fault.status:
            self._answer(fault.status, b"", fault.headers)
        elif path.startswith("/files/"):
            self._bytes(self.server.plain.get(path.removeprefix("/files/")), fault)
        elif path.startswith("/content/"):
            data = next(
                (
                    d
                    for r in self.server.repos.values()
                    for f in r.revisions.values()
                    for d in f.values()
                    if _sha(d) in path
                ),
                None,
            )
            self._bytes(data, fault)
        elif "/resolve/" in path:
            self._resolve(path, fault)
        else:
            self._api(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            if value:
                self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _bytes(
        self, data: bytes | None, fault: Fault, headers: dict[str, str] | None = None
    ) -> None:
        """A body, or the rest of it, with whatever goes wrong on the way."""
        if data is None:
            return self._answer(404)
        tag = f'"{_sha(data)}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes"} | (headers or {})
        span = self.headers.get("Range", "")
        start = 0
        if (
            span.startswith("bytes=")
            and not fault.ignore_range
            and self.headers.get("If-Range", tag) == tag
        ):
            start = int(span.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        headers["Content-Length"] = "" if fault.no_length else str(len(body) + fault.lie)
        if fault.drop_after is not None or fault.lie or fault.no_length:
            body = body[: fault.drop_after]
            self.close_connection = True
        return self._answer(206 if "Content-Range" in headers else 200, body, headers)

    def _resolve(self, path: str, fault: Fault) -> None:
        repo_id, _, rest = path.strip("/").partition("/resolve/")
        repo = self._readable(repo_id)
        if repo is None:
            return None
        revision, _, filename = rest.partition("/")
        if revision == "refs":  # refs/pr/1 is one revision
            kind, number, filename = filename.split("/", 2)
            revision = f"refs/{kind}/{number}"
        commit = repo.commit(revision)
        if commit is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        data = repo.files(revision).get(filename)
        if data is None:
            return self._answer(
                404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            )
        if len(data) < LARGE:
            return self._bytes(data, fault, {"X-Repo-Commit": commit})
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{_sha(data)}"',
            "X-Linked-Size": str(len(data)),
        }
        return self._answer(
            302, b"", headers | {"Location": f"{self.server.content_url}/content/{_sha(data)}"}
        )

    def _readable(self, repo_id: str) -> Repo | None:
        repo = self.server.repos.get(repo_id)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is not None and repo.gated and token != repo.token:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repo is not None and token and repo.token and token != repo.token:
            self._answer(
                401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        elif repo is None or (repo.token and token != repo.token):
            self._answer(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            return repo
        return None

    def _api(self, path: str, body: bytes) -> None:
        parts = path.strip("/").split("/")
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{self.server.url}/upload/{o['oid']}"}},
                }
                for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if parts[0] == "upload":
            self.server.uploaded[parts[1]] = body
            return self._answer(200)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            exists = repo_id in self.server.repos
            self.server.repos.setdefault(repo_id, Repo())
            return self._json({"url": f"{self.server.url}/{repo_id}"}, 409 if exists else 200)
        if parts[:2] != ["api", "models"] or len(parts) < 5:
            return self._answer(404)
        repo = self._readable("/".join(parts[2:4]))
        return (
            None
            if repo is None
            else self._model(repo, "/".join(parts[2:4]), parts[4], "/".join(parts[5:]), body)
        )

    def _model(self, repo: Repo, repo_id: str, verb: str, rest: str, body: bytes) -> None:
        revision = rest or "main"
        if verb == "discussions":
            # All of them, as a mirror might answer: whose they are must be checked.
            return self._json(
                {"discussions": repo.discussions, "count": len(repo.discussions), "start": 0}
            )
        if verb == "branch":
            repo.revisions.setdefault(rest, dict(repo.revisions["main"]))
            return self._json({})
        commit = repo.commit(revision)
        if commit is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = repo.files(revision)
        if verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {"id": repo_id, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            )
        if verb == "tree":
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _sha(data)[:40]}
                    for name, data in files.items()
                ]
            )
        if verb == "preupload":
            return self._json({"files": [_upload_mode(each) for each in json.loads(body)["files"]]})
        if verb == "commit":
            self._take(files, body)
            made = repo.commit(revision)
            return self._json(
                {"commitUrl": f"{self.server.url}/{repo_id}/commit/{made}", "commitOid": made}
            )
        return self._answer(404)

    def _take(self, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def conversion(number: int, author: str = "SFconvertbot") -> dict[str, Any]:
    """A pull request as the Hub lists it."""
    return {
        "num": number,
        "title": "Adding `safetensors` variant of this model",
        "status": "open",
        "isPullRequest": True,
        "author": {"name": author},
        "createdAt": "2023-01-01T00:00:00.000Z",
        "repo": {"name": "x/y", "type": "model"},
    }


@contextmanager
def running() -> Iterator[HubServer]:
    """A server for the time of a `with` block."""
    server = HubServer()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    """How a file is to be uploaded, as the Hub answers."""
    return {
        "path": file["path"],
        "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
        "shouldIgnore": False,
    }
