"""A stand-in of the Hugging Face hub on this machine, as far as huggingface_hub asks it for models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants


class Hub(ThreadingHTTPServer):
    """Repositories by name: for each revision its files; and what was asked, e.g. "POST /api/repos/create"."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add files to the main branch; return the commit."""
        repo = self.repos.setdefault(name, {"main": {}})
        repo["main"] = {**repo["main"], **files}
        key = hashlib.sha1(b"".join(repo["main"].values())).hexdigest()
        repo[key] = repo["main"]
        return key


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        raw = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(name, {"main": {}})
            self.answer({"url": f"{self.server.url}/{name}"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(raw)["files"]]
            self.answer(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            )
        elif found := re.fullmatch("/api/models/([^/]+/[^/]+)/commit/main", self.path):
            lines = [json.loads(line) for line in raw.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            key = self.server.commit(found[1], files)
            self.answer({"commitUrl": f"{self.server.url}/{found[1]}/commit/{key}", "commitOid": key})
        else:
            self.answer({})  # validate-yaml

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        repo = self.server.repos.get(found[1]) if found else None
        if found is None or repo is None or found[3] not in repo:
            code = "RevisionNotFound" if repo else "RepoNotFound"
            self.answer({"error": "none of that name"}, 404, X_Error_Code=code)
            return
        files = repo[found[3]]
        key = next(k for k, held in repo.items() if k != "main" and held is files)
        if found[2] == "revision":
            self.answer({"id": found[1], "sha": key, "siblings": [{"rfilename": name} for name in files]})
        elif found[2] == "tree":
            oids = {name: hashlib.sha1(raw).hexdigest() for name, raw in files.items()}
            tree = [{"type": "file", "path": n, "size": len(files[n]), "oid": oids[n]} for n in files]
            self.answer(tree)
        else:
            raw = files[found[4]]
            self.answer(raw, X_Repo_Commit=key, ETag=f'"{hashlib.sha1(raw).hexdigest()}"')

    do_HEAD = do_GET


@contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub, of which huggingface_hub keeps what it fetches in `cache`."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
