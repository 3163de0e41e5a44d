"""A hub on loopback that takes what huggingface_hub sends: repositories, branches, large files and commits."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_test"


class FakeHub(ThreadingHTTPServer):
    """repositories: id → whether it is private, and branch → path → bytes. Only TOKEN may write, and nothing of `theirs/`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.stored = {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub(monkeypatch, token=TOKEN):
    """A hub that huggingface_hub of this process speaks to, with `token`."""
    import huggingface_hub
    from huggingface_hub import constants

    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setenv("HF_TOKEN", token)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        routes = {
            r"/api/repos/create": self.create,
            r"/api/validate-yaml": lambda body: (200, {"errors": [], "warnings": []}),
            r"/api/models/(.+)/branch/(.+)": self.branch,
            r"/api/models/(.+)/preupload/(.+)": self.preupload,
            r"/(.+)\.git/info/lfs/objects/batch": self.batch,
            r"/api/models/(.+)/commit/(.+)": self.commit,
        }
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            return self.say(401, {"error": "Invalid credentials"})
        path = self.path.partition("?")[0]
        answer, found = next((a, m) for pattern, a in routes.items() if (m := re.fullmatch(pattern, path)))
        return self.say(*answer(body, *found.groups()))

    def do_GET(self):
        repo_id = self.path.removeprefix("/api/models/").partition("/revision/")[0]
        entry = self.server.repositories.get(repo_id)
        if entry is None:
            return self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self.say(200, {"id": repo_id, "private": entry["private"], "sha": "0" * 40, "siblings": []})

    def do_PUT(self):
        self.server.stored[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.say(200, {})

    def create(self, body):
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "theirs":
            return 403, {"error": "You don't have the rights to create a model under theirs"}
        known = repo_id in self.server.repositories
        private = asked.get("visibility") == "private"
        self.server.repositories.setdefault(repo_id, {"private": private, "branches": {"main": {}}})
        return (409 if known else 200), {"url": f"{self.server.url}/{repo_id}", "error": "you already have it"}

    def branch(self, body, repo_id, name):
        self.server.repositories[repo_id]["branches"].setdefault(name, {})
        return 200, {}

    def preupload(self, body, repo_id, revision):
        large = (".safetensors", ".gguf")
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def batch(self, body, repo_id):
        objects = json.loads(body)["objects"]
        where = f"{self.server.url}/put/"
        return 200, {
            "transfer": "basic",
            "objects": [o | {"actions": {"upload": {"href": where + o["oid"]}}} for o in objects],
        }

    def commit(self, body, repo_id, revision):
        files = self.server.repositories[repo_id]["branches"][revision]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        return 200, {"commitUrl": f"{self.server.url}/{repo_id}/commit/1", "commitOid": "1" * 40}

    def say(self, status, content, headers=()):
        written = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_):
        pass
