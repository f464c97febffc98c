"""A server that answers as the Hugging Face Hub does: for one repository that is there, and for some that are not."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
PRESENT = "lab/present"
_REFUSALS = {"absent": (404, "RepoNotFound"), "overloaded": (503, "")}


@contextmanager
def stand_in_hub(home: Path, folder: Path | None = None) -> Iterator[dict[str, str]]:
    """Serve `folder` as `lab/present`; gives the environment of a process that has this Hub, and its cache in `home`."""

    class Handler(_Handler):
        served = folder

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield env | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Path | None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if f"/{PRESENT}" in path:
            self._answer(200, self._content(path), {"X-Repo-Commit": COMMIT})
        elif "/gated" in path:
            status = 403 if self.headers.get("Authorization") == "Bearer hf_wrong" else 401
            self._answer(status, b"", {"X-Error-Code": "GatedRepo"})
        else:
            unknown = (404, "")
            status, code = next((answer for name, answer in _REFUSALS.items() if f"/{name}" in path), unknown)
            self._answer(status, b"", {"X-Error-Code": code})

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None: ...

    def _content(self, path: str) -> bytes:
        assert self.served
        files = sorted(self.served.iterdir())
        if path.startswith(f"/api/models/{PRESENT}/tree/"):
            tree = [{"type": "file", "oid": "b" * 40, "size": f.stat().st_size, "path": f.name} for f in files]
            return json.dumps(tree).encode()
        if path.startswith("/api/"):
            return json.dumps(
                {"id": PRESENT, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            ).encode()
        return (self.served / Path(path).name).read_bytes()

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # of a client that cancels
                self.wfile.write(content)
