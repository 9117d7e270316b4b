"""A Hub of one process: what huggingface_hub asks when it pushes and loads models, kept in memory.

Real: repositories that are private or public, branches, commits that are atomic, tokens, datasets that are read. Not
here: large files (every upload mode is `regular`), accounts. The name of a dataset begins with `datasets/`.
"""

import base64
import hashlib
import json
import re
import socket
import struct
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_local"


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def text(self, path: str, revision: str = "main") -> str:
        return self.files(revision)[path].decode()


class HubServer:
    """Runs in a thread. `repositories` is all there is.

    `interruptions`: so many of the next commits find the connection cut in the middle of their upload.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.interruptions = 0
        self.requests: list[tuple[str, str]] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __getitem__(self, repo_id: str) -> Repository:
        return self.repositories[repo_id]

    def environment(self, home, token: str | None = TOKEN) -> dict[str, str]:
        """What a process needs to take this for the Hub, set before it imports huggingface_hub."""
        chosen = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        chosen |= {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return chosen | ({"HF_TOKEN": token} if token else {})

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args):
        pass

    def answer(self, content=b"", status: int = 200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content_Type", "application/json")

        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, repo_id: str) -> Repository | None:
        """The repository, if the caller may see it. Otherwise the refusal has been sent."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self.known):
            self.refuse(404 if self.known else 401, "RepoNotFound")
            return None
        return repository

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        if match := re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(/.*)?", path):
            if repository := self.find(match[1]):
                self.describe(match[1], repository, match[2] or "")
        elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if repository := self.find(match[1]):
                self.send_file(repository, unquote(match[2]), unquote(match[3]))
        else:
            self.refuse(404, "RepoNotFound")

    def describe(self, repo_id: str, repository: Repository, rest: str):
        _, what, *names = [*rest.split("/"), ""] if rest else ["", ""]
        if what == "refs":
            branches = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.branches.items()
            ]
            return self.answer({"branches": branches, "converts": [], "tags": []})

        revision = unquote(names[0]) if names and names[0] else "main"
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[sha]

        if what == "tree":
            folder = "/".join(names[1:]).strip("/")
            listed = {path: x for path, x in files.items() if not folder or path.startswith(f"{folder}/")}
            if folder and not listed:
                return self.refuse(404, "EntryNotFound")
            return self.answer([{"type": "file", "path": p, "size": len(x), "oid": blob(x)} for p, x in listed.items()])

        siblings = [{"rfilename": path} for path in files]
        self.answer(
            {
                "id": repo_id,
                "sha": sha,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def send_file(self, repository: Repository, revision: str, path: str):
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        if path not in repository.commits[sha]:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        content = repository.commits[sha][path]
        self.answer(
            content,
            X_Repo_Commit=sha,
            ETag=f'"{blob(content)}"',
            Content_Type="application/octet-stream",
        )

    def do_POST(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        commit = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path)
        if commit and self.hub.interruptions:
            self.hub.interruptions -= 1
            return self.cut()

        body = self.body()
        if not self.known:
            return self.answer({"error": "no token"}, 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch|commit)/(.+)", path)
        repository = self.find(match[1])

        if repository is not None:
            revision = unquote(match[3])
            if match[2] == "branch":
                return self.branch(repository, revision)
            if revision not in repository.branches:
                return self.refuse(404, "RevisionNotFound")
            getattr(self, match[2])(match[1], repository, revision, body)

    def cut(self):
        """Take half of what is sent and break the connection with a reset, as a server that dies does."""
        self.rfile.read(int(self.headers["Content-Length"]) // 2)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def create(self, wanted: dict):
        repo_id = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if repo_id in self.hub.repositories:
            return self.answer({"error": "exists", "url": f"{self.hub.url}/{repo_id}"}, 409)
        repository = self.hub.repositories[repo_id] = Repository(wanted.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b""}, "initial commit")
        self.answer({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def branch(self, repository: Repository, name: str):
        if name in repository.branches:
            return self.answer({"error": "exists"}, 409)
        repository.branches[name] = repository.branches["main"]
        self.answer({})

    def preupload(self, repo_id: str, repository: Repository, revision: str, body: bytes):
        files, stored = json.loads(body)["files"], repository.files(revision)
        modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        for mode in modes:
            if mode["path"] in stored:
                mode["oid"] = blob(stored[mode["path"]])
        self.answer({"files": modes})

    def commit(self, repo_id: str, repository: Repository, revision: str, body: bytes):
        files, message = dict(repository.files(revision)), ""
        for line in body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del files[value["path"]]

        sha = repository.commit(revision, files, message)
        url = f"{self.hub.url}/{repo_id}/commit/{sha}"
        self.answer({"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})


def blob(content: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
