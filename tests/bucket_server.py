"""The bucket gs://bucket on 127.0.0.1: gcp-storage-emulator, with the generations it lacks.

Prints its address and serves until its standard input is closed. GET /refuse/STATUS makes it answer
all later requests with that status, 0 ends this.
"""

import sys
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound


class Router(server.Router):
    """Handles one request; they are served one at a time."""

    refused = 0

    def handle(self, method):
        url = urlsplit(self._request_handler.path)
        if url.path.startswith("/refuse/"):
            Router.refused = int(url.path.rpartition("/")[2])
            self._answer(HTTPStatus.OK)
        elif Router.refused:
            self._answer(Router.refused)
        else:
            query = parse_qs(url.query)
            found = self._generation(url.path, query)
            if query.get("ifGenerationMatch", [found]) != [found]:
                self._answer(HTTPStatus.PRECONDITION_FAILED)
            else:
                self._add_header("x-goog-generation", found)
                super().handle(method)

    def _generation(self, path, query):
        name = query["name"][0] if "name" in query else unquote(path.rpartition("/o/")[2])
        try:
            return self._request_handler.storage.get_file_obj("bucket", name)["generation"]
        except NotFound:
            return "0"

    def _add_header(self, name, value):
        handler, end = self._request_handler, self._request_handler.end_headers

        def end_headers():
            handler.send_header(name, value)
            end()

        handler.end_headers = end_headers

    def _answer(self, status):
        handler = self._request_handler
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


def main():
    server.Router = Router
    emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    emulator.start()
    host, port = emulator._api._httpd.server_address
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    emulator.stop()


if __name__ == "__main__":
    main()
