"""A dataset repository behind the Hub's web interface, on this machine: what reading a dataset over the network needs."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

NAME, COMMIT = "some/data", "a" * 40


@contextmanager
def stand_in_hub(folder):
    """Serve the files of a folder as the dataset some/data; yield the address to set as HF_ENDPOINT, and the paths asked for."""
    files, asked = {path.name: path.read_bytes() for path in folder.iterdir()}, []

    class Answer(BaseHTTPRequestHandler):
        def answer(self):
            path, size = urlparse(self.path).path, int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size).decode()
            asked.append(path)
            if NAME not in path:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif "/resolve/" in path:
                self.send_file(path.rpartition("/")[2])
            elif "/paths-info/" in path:
                wanted = parse_qs(body).get("paths") or json.loads(body)["paths"]
                self.send_json([entry(name) for name in wanted if name in files])
            elif "/tree/" in path:
                self.send_json([entry(name) for name in sorted(files)])
            else:
                self.send_json({"id": NAME, "sha": COMMIT, "private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0,
                                "siblings": [{"rfilename": name} for name in files]})

        do_GET = do_HEAD = do_POST = answer

        def send_file(self, name):
            if name not in files:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content, asked_range = files[name], self.headers.get("Range")
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
            if not asked_range:
                self.send(200, content, headers)
                return
            first, last = asked_range.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            self.send(206, part, headers | {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"})

        def send_json(self, value):
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def send(self, status, content, headers):
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *ignored):
            pass

    def entry(name):
        return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
