"""A hub on loopback that huggingface_hub's own client speaks to: models' repositories, with commits, branches and LFS.

It answers as huggingface.co does in what that client sends for reading and publishing: model info, trees, HEAD and GET
of files with ETag, X-Repo-Commit and ranges, redirects of large files to another origin, the errors' X-Error-Code,
creating repositories and branches, preupload, the LFS batch API with PUT and verify, and commits as NDJSON. Xet is not
offered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

Tree = dict[str, bytes]
_LFS_BYTES = 10_000
"""Smaller than the hub's, so that small bundles have files of both kinds."""
_CUT_AT = 12_000_000
_LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other"}
_ENDPOINTS = ("/revision/", "/tree/", "/preupload/", "/commit/", "/branch/", "/paths-info/", "/refs")


@dataclass
class Repository:
    """A repository of the hub: commits are trees, by hash."""

    is_private: bool = False
    is_gated: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Add a commit that changes files of a branch, or removes those that are None; return its hash."""
        tree = {**self.commits.get(self.refs.get(branch, ""), {}), **changes}
        kept = {path: data for path, data in tree.items() if data is not None}
        contents = "".join(f"{path} {blob_id(data)}\n" for path, data in sorted(kept.items()))
        oid = hashlib.sha1(f"{self.refs.get(branch)} {len(self.commits)} {contents}".encode()).hexdigest()
        self.commits[oid] = kept
        self.refs[branch] = oid
        return oid

    def tree(self, revision: str) -> tuple[str, Tree] | None:
        """Return the commit that a branch, tag or hash stands for, and its files."""
        oid = self.refs.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


@dataclass
class Hub:
    """The state of the server, which tests look at and change.

    Attributes:
        repositories: by "owner/name".
        token: the one that may read what is private, and write.
        requests: "METHOD /path" of each request, in the order that they came.
        lies: contents that are sent in place of a file's, by its name.
        gates: by a file's name what is called before its contents are sent: it may wait.
        answers: bodies that are sent in place of the hub's own, by path.
        cuts: names of files whose connection breaks, once, after 12 MB.
        ranges: the Range of each request that has one.
    """

    url: str = ""
    other_url: str = ""
    token: str = "hf_of_the_owner"
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    lies: dict[str, bytes] = field(default_factory=dict)
    gates: dict[str, Callable[[], None]] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    cuts: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)

    def files_sent(self) -> list[str]:
        """Return the names of the files whose contents were asked for."""
        sent = re.compile(r"GET /(?:large|[^/]+/[^/]+/resolve)/.*?([^/]+)")
        return [match[1] for match in map(sent.fullmatch, self.requests) if match]

    def add(
        self, name: str, files: Mapping[str, bytes], *, is_private: bool = False, is_gated: bool = False
    ) -> Repository:
        """Add a repository with one commit."""
        repository = self.repositories[name] = Repository(is_private, is_gated)
        repository.commit(files)
        return repository


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub without repositories until the block ends."""
    hub = Hub()

    class Handler(_HubHandler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.other_url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def blob_id(data: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, data: bytes) -> bool:
    """Return whether a file is stored by LFS."""
    return len(data) > _LFS_BYTES or path.endswith((".onnx", ".safetensors", ".plan"))


class _RefusedError(Exception):
    """An answer that is an error: its status, X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class _HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):  # a client that was killed
            self.close_connection = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        self._body = self._read_body()
        try:
            self._route(path)
        except _RefusedError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send_json({"error": error.message}, error.status, {k: v for k, v in headers.items() if v})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, path: str) -> None:
        if path in self.state.answers:
            self._send(self.state.answers[path], 200)
        elif resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(*resolve.groups())
        elif large := re.fullmatch(r"/large/([0-9a-f]{64})/(.+)", path):
            self._large_file(*large.groups())
        elif batch := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch(batch[1])
        elif path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self._validate_card()
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path):
            self._of_model(found[1], found[2] or "revision", found[3] or "main")
        else:
            raise _RefusedError(404)

    # reading

    def _of_model(self, name: str, what: str, revision: str) -> None:
        calls: dict[str, Callable[[str, str], None]] = {
            "revision": self._info,
            "tree": self._tree,
            "refs": self._refs,
            "preupload": self._preupload,
            "commit": self._commit,
            "branch": self._branch,
        }
        if what not in calls:
            raise _RefusedError(404)
        calls[what](name, revision)

    def _is_authorised(self) -> bool:
        sent = self.headers.get("Authorization")
        if sent is not None and sent != f"Bearer {self.state.token}":
            raise _RefusedError(401, message="Invalid credentials in Authorization header")
        return sent is not None

    def _repository(self, name: str) -> Repository:
        repository, is_authorised = self.state.repositories.get(name), self._is_authorised()
        if repository is None or (repository.is_private and not is_authorised):
            raise _RefusedError(404 if is_authorised else 401, "RepoNotFound", "Repository not found")
        return repository

    def _files(self, name: str, revision: str) -> tuple[str, Tree]:
        found = self._repository(name).tree(revision)
        if found is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _info(self, name: str, revision: str) -> None:
        oid, tree = self._files(name, revision)
        repository = self.state.repositories[name]
        self._send_json(
            {
                "_id": name,
                "id": name,
                "modelId": name,
                "sha": oid,
                "private": repository.is_private,
                "gated": "manual" if repository.is_gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(tree)],
            }
        )

    def _tree(self, name: str, revision: str) -> None:
        _, tree = self._files(name, revision)
        entries = []
        for path, data in tree.items():
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            large = {"lfs": lfs} if is_large(path, data) else {}
            entries.append({"type": "file", "path": path, "size": len(data), "oid": blob_id(data), **large})
        self._send_json(entries)

    def _refs(self, name: str, _: str) -> None:
        refs = self._repository(name).refs
        branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": oid} for ref, oid in refs.items()]
        self._send_json({"branches": branches, "converts": [], "tags": []})

    def _send_file(self, name: str, revision: str, path: str) -> None:
        oid, tree = self._files(name, revision)
        if self.state.repositories[name].is_gated and not self._is_authorised():
            raise _RefusedError(401, "GatedRepo", f"Access to model {name} is restricted.")
        if path not in tree:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        data = tree[path]
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if is_large(path, data):
            digest = hashlib.sha256(data).hexdigest()
            self.state.large[digest] = data
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.state.other_url}/large/{digest}/{path}",
            }
            self._send(b"", 302, headers)
        else:
            self._send_contents(path, data, headers | {"ETag": f'"{blob_id(data)}"'})

    def _large_file(self, digest: str, path: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self._body).hexdigest() != digest:
                raise _RefusedError(400, message="other contents")
            self.state.large[digest] = self._body
            self._send(b"", 200)
        elif self.command == "POST":
            self._send_json({} if digest in self.state.large else {"error": "missing"})
        else:
            self._send_contents(path, self.state.large[digest], {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _send_contents(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        if self.command == "GET":
            if path in self.state.gates:
                self.state.gates[path]()
            data = self.state.lies.get(path, data)
        status, start = 200, 0
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            self.state.ranges.append(part[0])
            start, end = int(part[1]), int(part[2] or len(data) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
            status, data = 206, data[start : end + 1]
        if self.command == "GET" and path in self.state.cuts:
            self.state.cuts.remove(path)
            self._send(data, status, headers, cut_at=_CUT_AT)
        else:
            self._send(data, status, headers)

    # publishing

    def _writable(self, name: str) -> Repository:
        if not self._is_authorised():
            raise _RefusedError(401, message="Invalid username or password.")
        return self._repository(name)

    def _create(self) -> None:
        if not self._is_authorised():
            raise _RefusedError(401, message="Invalid username or password.")
        asked = json.loads(self._body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.state.url}/{name}", "name": name}
        if name in self.state.repositories:
            self._send_json({"error": "You already created this model repo", **url}, 409)
            return
        is_private = asked.get("private") is True or asked.get("visibility") == "private"
        self.state.add(name, {".gitattributes": b"*.onnx filter=lfs\n"}, is_private=is_private)
        self._send_json(url)

    def _branch(self, name: str, branch: str) -> None:
        repository = self._writable(name)
        if branch in repository.refs:
            raise _RefusedError(409, message="Reference already exists")
        repository.refs[branch] = repository.refs["main"]
        self._send_json({})

    def _validate_card(self) -> None:
        content = json.loads(self._body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        card = yaml.safe_load(found[1]) if found else None
        errors = []
        if not isinstance(card, dict):
            errors.append("empty metadata")
        elif card.get("license") not in _LICENSES:
            errors.append(f'"license" must be one of {sorted(_LICENSES)}')
        elif not isinstance(card.get("tags"), list):
            errors.append('"tags" must be an array')
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        self._send_json(answer, 400 if errors else 200)

    def _preupload(self, name: str, revision: str) -> None:
        self._writable(name)
        _, tree = self._files(name, revision)
        answers = []
        for file in json.loads(self._body)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            mode = "lfs" if is_large(path, sample) or file["size"] > _LFS_BYTES else "regular"
            known = {"oid": blob_id(tree[path])} if path in tree and mode == "regular" else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self._send_json({"files": answers})

    def _lfs_batch(self, name: str) -> None:
        self._writable(name)
        objects = []
        for one in json.loads(self._body)["objects"]:
            url = f"{self.state.url}/large/{one['oid']}/upload"
            actions = {"actions": {"upload": {"href": url}, "verify": {"href": url}}}
            objects.append({**one, **({} if one["oid"] in self.state.large else actions)})
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, branch: str) -> None:
        repository = self._writable(name)
        changes: dict[str, bytes | None] = {}
        for line in self._body.splitlines():
            part = json.loads(line)
            key, value = part["key"], part["value"]
            if key == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changes[value["path"]] = self.state.large[value["oid"]]
            elif key == "deletedFile":
                changes[value["path"]] = None
        oid = repository.commit(changes, branch)
        self._send_json({"success": True, "commitOid": oid, "commitUrl": f"{self.state.url}/{name}/commit/{oid}"})

    # answering

    def _send_json(self, answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(json.dumps(answer).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(
        self, data: bytes, status: int, headers: Mapping[str, str] | None = None, cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut_at])
        if cut_at is not None:
            self.close_connection = True
