"""A Hub of our own on 127.0.0.1: repositories in memory, spoken to by the real client.

It knows what publishing and pulling back ask for, keeps every request, and fails on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_ThisTokenIsSecret0123456789"
LFS = (".safetensors", ".png")
LICENCES = ("apache-2.0", "mit", "llama3.1", "other")

_NUMBERS = count()


@dataclass(frozen=True)
class Blob:
    """A file; `content` is None for a large file that came by xet."""

    content: bytes | None
    sha256: str
    size: int
    large: bool

    @property
    def oid(self) -> str:
        """The id that preupload tells the client, which compares it to find unchanged files."""
        if self.large:
            return self.sha256
        assert self.content is not None
        return hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """Files by their path."""

    sha: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repository:
    """Branches and pull requests are lists of commits, the newest last."""

    private: bool
    refs: dict[str, list[Commit]]
    tags: dict[str, Commit] = field(default_factory=dict)
    pull_requests: list[str] = field(default_factory=list)

    @property
    def main(self) -> Commit:
        return self.refs["main"][-1]

    def at(self, revision: str) -> Commit | None:
        """Returns a commit by the name of a branch or tag, or by its digest."""
        if revision in self.refs:
            return self.refs[revision][-1]
        commits = {one.sha: one for ref in self.refs.values() for one in ref}
        return self.tags.get(revision) or commits.get(revision)


@dataclass
class Fault:
    """Happens instead of an answer, a number of times.

    Attributes:
        path: a pattern of "METHOD /path".
        cut: close the connection without a word.
        refuse: what is said of every object of an LFS batch.
        then: is called before the request is answered as usual, instead of a failure.
    """

    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    times: int = 1
    cut: bool = False
    refuse: str = ""
    then: Callable[[], None] | None = None


@dataclass(frozen=True)
class Request:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class StandIn:
    """The Hub's state; `endpoint` is where it listens."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.who: dict[str, Any] = {
            "name": "me",
            "orgs": [{"name": "team", "roleInOrg": "write"}, {"name": "guests", "roleInOrg": "read"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.xet_store: str | None = None
        self.xet_hashes: dict[str, str] = {}

    def fill(self, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """A repository that somebody else has made."""
        repository = self.repositories[repo_id] = Repository(private, {"main": []})
        repository.refs["main"].append(self.commit({p: self._blob(p, c) for p, c in files.items()}))
        return repository

    def commit(self, files: dict[str, Blob], title: str = "by hand") -> Commit:
        # Never the same twice: clients keep what they have downloaded by it.
        return Commit(hashlib.sha1(str(next(_NUMBERS)).encode()).hexdigest(), title, files)

    def asked(self, pattern: str) -> list[Request]:
        """Returns the requests of that kind so far."""
        return [one for one in self.requests if re.search(pattern, f"{one.method} {one.path}")]

    def content(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Returns the content of a published file."""
        commit = self.repositories[repo_id].at(revision)
        assert commit is not None
        found = commit.files[path].content
        assert found is not None
        return found

    def _blob(self, path: str, content: bytes) -> Blob:
        return Blob(content, hashlib.sha256(content).hexdigest(), len(content), path.endswith(LFS))

    # ------------------------------------------------------------------ what a commit holds

    def apply(self, repository: Repository, ref: str, lines: bytes) -> Commit:
        title = ""
        files = dict(repository.refs[ref][-1].files)
        for line in lines.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = self._blob(value["path"], base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                stored = self.objects.get(value["oid"])
                assert stored is not None or self.xet_store is not None, "never uploaded"
                size = value.get("size", len(stored or b""))
                files[value["path"]] = Blob(stored, value["oid"], size, True)
            else:
                del files[value["path"]]
        made = self.commit(files, title)
        repository.refs[ref].append(made)
        return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing; the requests are kept."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        known = {"X_Error_Code": code, "X_Error_Message": message}
        self._answer(
            status, {"error": message}, **{name: text for name, text in known.items() if text}, **headers
        )

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.hub.requests.append(request)
        for fault in self.hub.faults:
            if fault.times and re.search(fault.path, f"{self.command} {url.path}"):
                fault.times -= 1
                if fault.then is not None:
                    fault.then()
                    continue
                return self._fail(fault, body)
        is_upload = url.path.startswith("/objects/")  # signed by its address, as at the Hub
        if not is_upload and headers.get("authorization") not in (None, f"Bearer {TOKEN}"):
            return self._error(401, message="Invalid credentials in Authorization header")
        for pattern, handle in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {url.path}")
            if match:
                parts = {name: unquote(text) for name, text in match.groupdict().items()}
                return handle(self, parts, body, parse_qs(url.query))
        return self._error(404, message=f"no route {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - as http.server calls them

    def _fail(self, fault: Fault, body: bytes) -> None:
        if fault.cut:
            self.close_connection = True
            self.connection.close()
        elif fault.refuse:
            error = {"code": 422, "message": fault.refuse}
            objects = [{**asked, "error": error} for asked in json.loads(body)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
        else:
            self._error(fault.status, message=fault.message, **fault.headers)

    # ------------------------------------------------------------------ answers

    def whoami(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        self._answer(200, self.hub.who)

    def create(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if repo_id in self.hub.repositories:
            return self._answer(409, {**answer, "error": "You already created this model repo"})
        self.hub.fill(repo_id, {".gitattributes": b"*.safetensors filter=lfs"})
        self.hub.repositories[repo_id].private = asked.get("visibility") == "private"
        return self._answer(200, answer)

    def validate(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        content = json.loads(body)["content"]
        metadata = yaml.safe_load(content.split("---")[1])
        if metadata.get("license", "mit") not in LICENCES:
            return self._answer(400, {"errors": [{"message": '"license" must be one of [apache-2.0, …]'}]})
        return self._answer(200, {"errors": [], "warnings": []})

    def auth_check(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        if self._repository(parts):
            self._answer(200, {})

    def info(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        commit = repository and self._commit(repository, parts)
        if repository and commit:
            siblings = [{"rfilename": path} for path in commit.files]
            about = {"id": parts["repo"], "sha": commit.sha, "private": repository.private, "tags": []}
            self._answer(200, {**about, "siblings": siblings, "downloads": 0, "likes": 0})

    def tree(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        commit = repository and self._commit(repository, parts)
        if commit:
            self._answer(200, [self._entry(path, blob) for path, blob in commit.files.items()])

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.sha256[:40]}
        if blob.large:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
            if blob.content is None:
                entry["xetHash"] = self.hub.xet_hashes[blob.sha256]
        return entry

    def preupload(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        commit = repository and self._commit(repository, parts)
        if not commit:
            return
        answers = []
        for asked in json.loads(body)["files"]:
            known = commit.files.get(asked["path"])
            mode = "lfs" if asked["path"].endswith(LFS) else "regular"
            oid = {"oid": known.oid} if known else {}
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        self._answer(200, {"files": answers})

    def batch(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            href = f"{self.hub.endpoint}/objects/{asked['oid']}"
            actions = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
            objects.append({**asked, **({} if asked["oid"] in self.hub.objects else actions)})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        assert hashlib.sha256(body).hexdigest() == parts["oid"]
        self.hub.objects[parts["oid"]] = body
        self._answer(200, {})

    def verify(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        self._answer(200 if parts["oid"] in self.hub.objects else 404, {})

    def commits(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        if not repository:
            return None
        header = json.loads(body.splitlines()[0])["value"]
        ref = parts["rev"]
        if query.get("create_pr"):
            ref = self._open(repository)
        elif header.get("parentCommit") not in (None, repository.refs[ref][-1].sha):
            return self._error(412, message="A commit has happened since. Please refresh and try again.")
        made = self.hub.apply(repository, ref, body)
        repo_url = f"{self.hub.endpoint}/{parts['repo']}"
        number = ref.removeprefix("refs/pr/")
        pull = f"{repo_url}/discussions/{number}" if query.get("create_pr") else None
        return self._answer(
            200,
            {"commitUrl": f"{repo_url}/commit/{made.sha}", "commitOid": made.sha, "pullRequestUrl": pull},
        )

    def _open(self, repository: Repository) -> str:
        ref = f"refs/pr/{len(repository.pull_requests) + 1}"
        repository.pull_requests.append(ref)
        repository.refs[ref] = [repository.main]
        return ref

    def discuss(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        if repository:
            assert json.loads(body)["pullRequest"]
            self._answer(200, {"num": int(self._open(repository).removeprefix("refs/pr/"))})

    def discussion(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        self._answer(
            200,
            {
                "title": "a pull request",
                "num": int(parts["number"]),
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "draft",
                "repo": {"name": parts["repo"], "type": "model"},
                "isPullRequest": True,
                "changes": {"base": "refs/heads/main"},
                "filesWithConflicts": [],
                "events": [],
            },
        )

    def tag(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        commit = repository and self._commit(repository, parts)
        if repository and commit:
            name = json.loads(body)["tag"]
            if name in repository.tags:
                return self._error(409, message="Tag reference exists already")
            repository.tags[name] = commit
            self._answer(200, {})
        return None

    def branch(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        if repository:
            if parts["rev"] in repository.refs:
                return self._error(409, message="Reference already exists")
            repository.refs[parts["rev"]] = [repository.main]
            self._answer(200, {})
        return None

    def xet_token(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        assert self.hub.xet_store is not None, "asked for xet, which is switched off"
        answer = {
            "X_Xet_Cas_Url": f"local://{self.hub.xet_store}",
            "X_Xet_Access_Token": "xet",
            "X_Xet_Token_Expiration": "4102444800",
        }
        written = {"casUrl": answer["X_Xet_Cas_Url"], "accessToken": "xet", "exp": 4102444800}
        self._answer(200, written, **answer)

    def resolve(self, parts: dict[str, str], body: bytes, query: Any) -> None:
        repository = self._repository(parts)
        commit = repository and self._commit(repository, parts)
        if not commit:
            return None
        blob = commit.files.get(parts["path"])
        headers = {"X_Repo_Commit": commit.sha}
        if blob is None:
            return self._error(404, "EntryNotFound", "Entry not found", **headers)
        headers["ETag"] = f'"{blob.oid}"'
        if blob.large:
            headers |= {"X_Linked_Size": str(blob.size), "X_Linked_ETag": f'"{blob.sha256}"'}
        if blob.content is None:
            route = f"{self.hub.endpoint}/api/models/{parts['repo']}/xet-read-token/{commit.sha}"
            headers |= {
                "X_Xet_Hash": self.hub.xet_hashes[blob.sha256],
                "X_Xet_Refresh_Route": route,
                "Content_Length": str(blob.size),
            }
            return self._answer(200, b"", **headers)
        content = blob.content
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], **headers)
        return self._answer(200, content, **headers)

    def _repository(self, parts: dict[str, str]) -> Repository | None:
        found = self.hub.repositories.get(parts["repo"])
        if found is None:
            self._error(404, "RepoNotFound", "Repository not found")
        return found

    def _commit(self, repository: Repository, parts: dict[str, str]) -> Commit | None:
        found = repository.at(parts.get("rev") or "main")
        if found is None:
            self._error(404, "RevisionNotFound", "Invalid rev id")
        return found


_API = r"/api/models/(?P<repo>[^/]+/[^/]+)"
_REV = r"/(?P<rev>[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET {_API}/auth-check(/write)?", _Handler.auth_check),
    (rf"GET {_API}/discussions/(?P<number>\d+)", _Handler.discussion),
    (rf"POST {_API}/discussions", _Handler.discuss),
    (rf"POST {_API}/preupload{_REV}", _Handler.preupload),
    (rf"POST {_API}/commit{_REV}", _Handler.commits),
    (rf"POST {_API}/tag{_REV}", _Handler.tag),
    (rf"POST {_API}/branch{_REV}", _Handler.branch),
    (rf"GET {_API}/tree{_REV}", _Handler.tree),
    (rf"GET {_API}/xet-(read|write)-token{_REV}", _Handler.xet_token),
    (rf"GET {_API}/revision{_REV}", _Handler.info),
    (rf"GET {_API}", _Handler.info),
    (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /objects/(?P<oid>[0-9a-f]{64})", _Handler.put),
    (r"POST /objects/(?P<oid>[0-9a-f]{64})/verify", _Handler.verify),
    (rf"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve{_REV}/(?P<path>.+)", _Handler.resolve),
]


@contextmanager
def serving() -> Iterator[StandIn]:
    """A stand-in that listens as long as the block runs."""
    hub = StandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Serves an empty stand-in until it is interrupted, and prints how clients find it."""
    with serving() as hub:
        print(  # noqa: T201 - for the shell
            f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
