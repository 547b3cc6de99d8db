"""
A Hub on loopback, for the real client: repositories with branches and commits, in memory. What it answers is as much
of the Hub's protocol as pushing, pulling and model cards need.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status, code=None, body=None):
        self.status, self.code, self.body = status, code, body or {"error": code or status}


@dataclass
class Repository:
    """Commits by id, each with its files, and branches by name."""

    private: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)

    def commit(self, branch, files):
        text = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())})
        oid = hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def find(self, revision):
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound")
        return oid, self.commits[oid]


class LoopbackHub:
    """
    The server; use it as a context manager.

    Args:
        token (`str`): What clients must send for pushing, and for private repositories.
    """

    def __init__(self, token="hf_loopback"):
        self.token = token
        self.repositories, self.objects = {}, {}
        self.requests = []  # (method, path)
        self.fail_at = None  # number of the request, from now on, that is refused
        self.lock = threading.Lock()

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                hub.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()

    def files(self, name, revision="main"):
        return self.repositories[name].find(revision)[1]

    # ---- requests

    def handle(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        parts = urlsplit(request.path)
        with self.lock:
            self.requests.append((request.command, parts.path))
            failing = self.fail_at is not None and self.fail_at == 0
            self.fail_at = None if self.fail_at is None else self.fail_at - 1
            try:
                if failing:
                    raise Refused(403)
                signed_in = request.headers.get("Authorization") == f"Bearer {self.token}"
                headers, answer = self.answer(request.command, parts, body, signed_in)
                status = 200
            except Refused as refusal:
                status, answer = refusal.status, json.dumps(refusal.body).encode()
                headers = {"X-Error-Code": refusal.code} if refusal.code else {}
        request.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": len(answer)}.items():
            request.send_header(name, str(value))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(answer)

    def answer(self, method, parts, body, signed_in):
        """Headers and body."""
        # Repository names and revisions hold no escaped slashes here.
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        if method == "PUT" and path[0] == "objects":
            self.objects[path[1]] = body
            return {}, b""
        if method == "POST" and not signed_in and path[0] != "objects":
            raise Refused(401)
        if path[:3] == ["api", "repos", "create"]:
            return {}, self.create(json.loads(body))
        if path[:2] == ["api", "validate-yaml"]:
            return {}, json.dumps({"errors": [], "warnings": []}).encode()
        if path[0] == "objects":  # verification of an upload
            return {}, b"{}"
        if path[:2] == ["api", "whoami-v2"]:
            return {}, json.dumps({"type": "user", "name": "org", "orgs": []}).encode()
        if path[0] == "api":
            return {}, self.api(method, path[2:], parse_qs(parts.query), body, signed_in)
        if path[2:5] == ["info", "lfs", "objects"] or path[1].endswith(".git"):
            return {"Content-Type": "application/vnd.git-lfs+json"}, self.lfs(json.loads(body))
        return self.resolve(path, signed_in)

    def repository(self, owner, name, signed_in):
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.private and not signed_in):
            raise Refused(404 if signed_in else 401, "RepoNotFound")
        return repository

    def create(self, wanted):
        name = f"{wanted.get('organization') or 'org'}/{wanted['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            raise Refused(409, body={**answer, "error": "You already created this model repo"})
        self.repositories[name] = Repository(
            private=bool(wanted.get("private")) or wanted.get("visibility") == "private"
        )
        self.repositories[name].commit("main", {".gitattributes": b""})
        return json.dumps(answer).encode()

    def api(self, method, path, query, body, signed_in):
        owner, name, *rest = path
        repository = self.repository(owner, name, signed_in)
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png", ".bin")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
            return json.dumps({"files": modes}).encode()
        if rest[:1] == ["branch"]:
            if rest[1] in repository.branches:
                raise Refused(409)
            repository.branches[rest[1]] = repository.branches["main"]
            return b"{}"
        if rest[:1] == ["commit"]:
            return self.commit(f"{owner}/{name}", repository, rest[1], body)
        revision = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree") else "main"
        oid, files = repository.find(revision)
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            listed = [
                {"type": "file", "path": file, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
                for file, data in sorted(files.items())
                if not folder or file.startswith(f"{folder}/")
            ]
            if folder and not listed:
                raise Refused(404, "EntryNotFound")
            return json.dumps(listed).encode()
        if rest[:1] == ["refs"]:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
            ]
            return json.dumps({"branches": branches, "tags": [], "converts": []}).encode()
        siblings = [{"rfilename": file} for file in sorted(files)]
        card = {"id": f"{owner}/{name}", "sha": oid, "private": repository.private, "siblings": siblings}
        return json.dumps({**card, "tags": [], "pipeline_tag": "text-classification"}).encode()

    def commit(self, name, repository, branch, body):
        if branch not in repository.branches:
            raise Refused(404, "RevisionNotFound")
        files = dict(repository.find(branch)[1])
        for line in body.decode().splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400)
                files[value["path"]] = self.objects[value["oid"]]
            elif change["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = repository.commit(branch, files)
        return json.dumps({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}).encode()

    def lfs(self, wanted):
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {
                    "upload": {"href": f"{self.url}/objects/{one['oid']}"},
                    "verify": {"href": f"{self.url}/objects/{one['oid']}/verify"},
                },
            }
            for one in wanted["objects"]
        ]
        return json.dumps({"transfer": "basic", "objects": objects}).encode()

    def resolve(self, path, signed_in):
        owner, name, _, revision, *file = path[1:] if path[0] == "datasets" else path
        oid, files = self.repository(owner, name, signed_in).find(revision)
        file = "/".join(file)
        if file not in files:
            raise Refused(404, "EntryNotFound")
        data = files[file]
        etag = hashlib.sha256(data).hexdigest()
        return {
            "X-Repo-Commit": oid,
            "ETag": f'"{etag}"',
            "X-Linked-Size": len(data),
            "X-Linked-Etag": f'"{etag}"',
            "Content-Type": "application/octet-stream",
        }, data
