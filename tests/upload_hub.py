"""A server that takes uploads as the Hugging Face Hub does: small files in the commit, others as large files before it."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_maywrite"


@dataclass
class UploadHub:
    """What was uploaded. `refusing` is the status that every request gets instead of an answer."""

    endpoint: str = ""
    refusing: int = 0
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)  # of all commits
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    tokens: set[str] = field(default_factory=set)


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Serve until the end of the block."""
    hub = UploadHub()

    class Handler(_Handler):
        state = hub

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    state: UploadHub

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.state.tokens.add(token)
        if self.state.refusing or (token != TOKEN and "/lfs/" not in path):
            self._answer(self.state.refusing or 403, {"error": "You may not write here"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "regular" if f["path"].endswith(".md") else "lfs",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            self._answer(200, {"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.state.endpoint}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        self.state.large[self.path.rpartition("/")[2]] = self._body()
        self._answer(200, {})

    def do_GET(self) -> None:
        created = any(self.path.endswith(f"/{made['name']}") for made in self.state.created)
        self._answer(self.state.refusing or (200 if created else 404), {"id": "ann/x", "error": "Repository not found"})

    def log_message(self, *args: object) -> None: ...

    def _create(self, asked: dict[str, Any]) -> None:
        known = [made for made in self.state.created if made["name"] == asked["name"]]
        self.state.created.append(asked)
        address = f"{self.state.endpoint}/datasets/{asked.get('organization')}/{asked['name']}"
        self._answer(409 if known else 200, {"url": address, "error": "You already created this dataset repo"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.state.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.state.files[value["path"]] = self.state.large[value["oid"]]
        answer = {
            "commitUrl": f"{self.state.endpoint}{self.path.partition('/api')[2].replace('main', 'a' * 40)}",
            "commitOid": "a" * 40,
            "hookOutput": "",
            "success": True,
        }
        self._answer(200, answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = b""
            while size := int(self.rfile.readline(), 16):
                pieces += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return pieces
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
