"""A server on this machine that keeps files as Google's buckets do, for TensorStore."""

import contextlib
import http.server
import json
import threading
import urllib.parse


@contextlib.contextmanager
def bucket():
    """The address of a server that keeps the files of all buckets in memory."""
    handler = type("Handler", (_Handler,), {"files": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads, conditional writes, removals and lists, as in https://cloud.google.com/storage/docs/json_api."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    files: dict[str, tuple[int, bytes]]  # the generation and the content of each, by the path of the request
    lock = threading.Lock()

    def do_GET(self):
        url, options = self._request()
        if url.endswith("/o"):
            names = sorted(urllib.parse.unquote(path.removeprefix(f"{url}/")) for path in list(self.files))
            start, end = options.get("startOffset", ""), options.get("endOffset")
            items = [{"name": name} for name in names if start <= name and (end is None or name < end)]
            return self._answer(200, json.dumps({"items": items}).encode())
        if url not in self.files:
            return self._answer(404)
        generation, content = self.files[url]
        return self._answer(200, content, {"x-goog-generation": str(generation)})

    def do_POST(self):
        url, options = self._request()
        path = f"{url.removeprefix('/upload')}/{urllib.parse.quote(options['name'], safe='')}"
        content = self.rfile.read(int(self.headers["content-length"]))
        with self.lock:
            generation = self.files.get(path, (0, b""))[0]
            if "ifGenerationMatch" in options and int(options["ifGenerationMatch"]) != generation:
                return self._answer(412)
            self.files[path] = generation + 1, content
        return self._answer(200, json.dumps({"name": options["name"], "generation": str(generation + 1)}).encode())

    def do_DELETE(self):
        url, _ = self._request()
        return self._answer(404 if self.files.pop(url, None) is None else 204)

    def log_message(self, *arguments):
        """Nothing."""

    def _request(self):
        url = urllib.parse.urlsplit(self.path)
        return url.path, dict(urllib.parse.parse_qsl(url.query))

    def _answer(self, code, content=b"", headers=None):
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
