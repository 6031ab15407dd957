"""A small W&B server in a thread, for W&B's own client: runs are written, resumed and read back by the public API, artifacts kept."""

import base64
import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEAM = "me"


@dataclass
class Kept:
    """A run as the server keeps it."""

    project: str
    name: str
    label: str = ""
    state: str = "running"
    group: str | None = None
    job_type: str | None = None
    tags: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    created: str = "2026-01-02T03:04:05"

    def node(self) -> dict:
        """Answer as GraphQL's type Run."""
        return {"id": identity("Run", self.name), "projectId": "1", "name": self.name, "displayName": self.label or self.name,
                "description": "", "notes": "", "state": self.state, "group": self.group, "jobType": self.job_type, "tags": self.tags,
                "config": json.dumps(self.config), "summaryMetrics": json.dumps(self.summary), "systemMetrics": "{}", "sweepName": None,
                "createdAt": self.created, "heartbeatAt": self.created, "historyLineCount": len(self.history), "eventsLineCount": 0,
                "logLineCount": 0, "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]), "eventsTail": "[]",
                "shouldStop": False, "stopped": False, "wandbConfig": '{"t": 1}', "commit": None, "readOnly": False,
                "user": {"name": TEAM, "username": TEAM},
                "historyKeys": {"lastStep": max((row["_step"] for row in self.history), default=-1)},
                "project": {"id": "1", "name": self.project, "entity": {"id": "1", "name": TEAM}}}


def identity(kind: str, name: str) -> str:
    return base64.b64encode(f"{kind}:v1:{name}".encode()).decode()


class SmallWandb(ThreadingHTTPServer):
    """`runs` by name and `artifacts` in their order are what a client has told; `asked` are the names of its questions."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Kept] = {}
        self.artifacts: list[dict] = []
        self.uploads: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.lock = threading.RLock()
        self.gone = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *rest) -> None:
        """Say nothing of a client that has hung up."""

    def close(self) -> None:
        """Answer nothing more, on the connections that are open either."""
        self.gone = True
        self.shutdown()
        self.server_close()

    def answer(self, query: str, given: dict) -> dict:
        """Answer a question of GraphQL; one that is not known gets nothing."""
        kind = (re.search(r"(?:query|mutation)\s+(\w+)", query) or ["", "?"])[1]
        with self.lock:
            self.asked.append(kind)
            known = getattr(self, f"_{kind}", None)
            return known(given) if known else dict.fromkeys(re.findall(r"^\s+(\w+)\s*[({]", query, re.MULTILINE)[:1])

    def _Viewer(self, given):
        return {"viewer": {"id": "1", "entity": TEAM, "username": TEAM, "name": TEAM, "email": "", "admin": False, "flags": "{}",
                           "apiKeys": {"edges": []}, "teams": {"edges": []}},
                "serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0", "min_cli_version": "0.0.1"}, "latestLocalVersionInfo": None}}

    _GetDefaultEntity = _Viewer

    def _UpsertBucket(self, given):
        name = given.get("name") or base64.b64decode(given["id"]).decode().split(":")[2]
        new = name not in self.runs
        run = self.runs.setdefault(name, Kept(given.get("project") or "uncategorized", name))
        run.state = "running"
        for ours, theirs in (("group", "groupName"), ("job_type", "jobType"), ("label", "displayName"), ("tags", "tags")):
            setattr(run, ours, given.get(theirs) or getattr(run, ours))
        run.config.update(json.loads(given.get("config") or "{}"))
        run.summary.update(json.loads(given.get("summaryMetrics") or "{}"))
        return {"upsertBucket": {"bucket": run.node(), "inserted": new}}

    def _RunResumeStatus(self, given):
        run = self.runs.get(given["name"])
        return {"model": {"id": "1", "name": given["project"], "entity": {"id": "1", "name": TEAM}, "bucket": run and run.node()}}

    def _CreateRunFiles(self, given):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given):
        told = given.get("input") or given
        self.artifacts.append({**told, "state": "PENDING"})
        made = {"id": str(len(self.artifacts) - 1), "digest": told.get("digest"), "state": "PENDING", "aliases": [],
                "artifactSequence": {"id": "1", "latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def _CreateArtifactManifest(self, given):
        place = {"id": "1", "name": "wandb_manifest.json", "uploadHeaders": [],
                 "uploadUrl": f"{self.url}/manifest/{given.get('artifactID') or given['input']['artifactID']}"}
        return {"createArtifactManifest": {"artifactManifest": {"id": "1", "file": place}}}

    _UpdateArtifactManifest = _CreateArtifactManifest

    def _CreateArtifactFiles(self, given):
        told = given.get("artifactFiles") or given.get("storageLayout") or given["input"]["artifactFiles"]
        edges = [{"node": {"id": str(i), "name": one["name"], "displayName": one["name"], "uploadUrl": f"{self.url}/file/{one['name']}",
                           "uploadHeaders": [], "storagePath": None, "uploadMultipartUrls": None,
                           "artifact": {"id": one.get("artifactID")}}} for i, one in enumerate(told)]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given):
        number = given.get("artifactID") or given["input"]["artifactID"]
        self.artifacts[int(number)]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": number, "digest": "d", "state": "COMMITTED", "aliases": []}}}

    def _Runs(self, given):
        there = [run for run in self.runs.values() if run.project == given["project"] and given["entity"] == TEAM]
        if not there:
            return {"project": None}
        wanted = json.loads(given["filters"])
        found = [run.node() for run in there if all(run.node()[key] == value for key, value in wanted.items())]
        first = int(given.get("cursor") or 0)
        last = first + given["perPage"]
        edges = [{"node": node, "cursor": str(first + i + 1)} for i, node in enumerate(found[first:last])]
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False,
                            "runs": {"edges": edges, "pageInfo": {"endCursor": str(last), "hasNextPage": last < len(found)}}}}

    def _Run(self, given):
        run = self.runs.get(given["name"])
        return {"project": {"run": run and run.node()}}

    _RunHistoryKeys = _Run

    def _RunParquetHistory(self, given):  # the real server has files for old rows, which its client reads by itself
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": self.runs[given["runName"]].history}}}}

    def _HistoryPage(self, given):
        rows = [row for row in self.runs[given["run"]].history if given["minStep"] <= row["_step"] < given["maxStep"]]
        return {"project": {"run": {"history": [json.dumps(row) for row in rows]}}}

    def _SampledHistoryPage(self, given):
        spec = json.loads(given["spec"])
        rows = [row for row in self.runs[given["run"]].history if spec["minStep"] <= row["_step"] <= spec["maxStep"]]
        found = [{key: row[key] for key in spec["keys"]} for row in rows if all(key in row for key in spec["keys"])]
        return {"project": {"run": {"sampledHistory": [found[: spec["samples"]]]}}}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallWandb

    def log_message(self, *rest) -> None:
        pass

    def _content(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _reply(self, what: dict) -> None:
        if self.server.gone:
            self.close_connection = True
            return
        content = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self.server.uploads[self.path] = self._content()
        self._reply({})

    def do_POST(self) -> None:
        content = self._content()
        if self.path.startswith("/graphql"):
            told = json.loads(content)
            self._reply({"data": self.server.answer(told["query"], told.get("variables") or {})})
            return
        if (stream := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)) and stream[1] in self.server.runs:
            self._streamed(self.server.runs[stream[1]], json.loads(content))
        self._reply({"exitcode": None, "limits": {}})  # also to what the client tells about itself

    def _streamed(self, run: Kept, told: dict) -> None:
        """Take rows and the summary of a run that goes on, or ends."""
        with self.server.lock:
            for name, part in (told.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    run.history[part.get("offset", 0):] = [json.loads(row, parse_constant=str) for row in part["content"]]
                elif name == "wandb-summary.json":
                    run.summary = json.loads(part["content"][-1], parse_constant=str)
            if told.get("complete"):
                run.state = "finished" if told.get("exitcode") == 0 else "failed"
