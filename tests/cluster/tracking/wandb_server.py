"""A stand-in for the W&B server: it keeps the rows of one run and answers as much as the client asks for."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """`with Server() as server: ...`; then `server.rows[name]` {line: content} and `server.bodies`, all it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.artifacts: list[str] = []  # names, in the order logged
        self.used: list[str] = []
        self.alerts: list[str] = []
        self.bodies: list[bytes] = []
        self.status = 200  # of every answer
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bucket(self, name: str) -> dict[str, Any] | None:
        """What the server knows of a run, for a client that asks where to go on."""
        if name not in self.rows:
            return None
        lines = [json.dumps(row) for _, row in sorted(self.rows[name].items())]
        counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        tails = {
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "summaryMetrics": lines[-1] if lines else "{}",
        }
        more = {"config": "{}", "wandbConfig": '{"t": 1}', "tags": [], "displayName": name, "project": project}
        return {"id": name, "name": name, **counts, **tails, **more}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self._read()
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self._read()
        if "/file_stream" in self.path:
            name = self.path.split("/")[-2]
            for file, part in (json.loads(body).get("files") or {}).items():
                if file == "wandb-history.jsonl":
                    lines = enumerate(part["content"], part["offset"])
                    self.server.rows[name] |= {at: json.loads(line) for at, line in lines}
                if file == "wandb-summary.json":
                    self.server.summaries[name] = json.loads(part["content"][-1])
            return self._answer({"limits": {}})
        asked: dict[str, Any] = json.loads(body) if self.path == "/graphql" else {"query": ""}
        self._answer({"data": self._data(asked["query"], asked.get("variables") or {})})

    def _data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if "upsertBucket" in query:
            name = variables["name"]
            new = name not in self.server.rows
            self.server.rows.setdefault(name, {})
            return {"upsertBucket": {"bucket": self.server.bucket(name), "inserted": new}}
        if "RunResumeStatus" in query:
            return {"model": {**project, "bucket": self.server.bucket(variables["name"])}}
        if "query ArtifactType" in query:
            return {"project": None}  # no such artifact yet
        if "createArtifact(" in query:
            made = variables["input"]["artifactCollectionName"]
            self.server.artifacts.append(made)
            sequence = {"id": "s", "latestArtifact": None}
            # As if the server had such an artifact already: then its files are not asked for.
            return {"createArtifact": {"artifact": {"id": made, "state": "COMMITTED", "artifactSequence": sequence}}}
        if "useArtifact(" in query:
            self.server.used.append(variables["input"]["artifactID"])
            return {"useArtifact": {"artifact": {"id": variables["input"]["artifactID"]}}}
        if "notifyScriptableRunAlert" in query:
            self.server.alerts.append(variables["text"])
            return {"notifyScriptableRunAlert": {"success": True}}
        if "createRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.server.url}/file"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        viewer = {"id": "u", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}
        versions: dict[str, Any] = {
            "cliVersionInfo": {"max_cli_version": "9.9.9"},
            "latestLocalVersionInfo": None,
            "features": [],
        }
        return {"viewer": viewer, "serverInfo": versions}

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.bodies.append(body)
        return body

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
