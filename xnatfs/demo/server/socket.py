"""Serve the demo on a socket with http.server, with one thread per connection."""

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.reply import PIECE_BYTES, Reply
from xnatfs.demo.server.request_bodies import Body


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024  # headers and a short body leave together
    server: "_Server"

    def do_any(self) -> None:
        try:
            body = self._body()
        except ValueError:
            self.close_connection = True
            self.send_error(400)
            return
        path, _, query = self.path.partition("?")
        headers = {key.lower(): value for key, value in self.headers.items()}
        with contextlib.closing(body):
            self._send(self.server.demo.handle(self.command, path, query, headers, body))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def _body(self) -> Body:
        """Read the request's body to its end: the rest would be parsed as the next request."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return Body(self._chunks())
        return Body(self._exactly(int(self.headers.get("content-length", "0"))))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self.rfile.read(min(size, PIECE_BYTES))
            if not piece:
                raise ValueError("less than was promised")
            size -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self._exactly(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            """Trailers are ignored."""

    def _send(self, reply: Reply) -> None:
        self.send_response_only(reply.status, reply.reason.encode("latin-1", "replace").decode("latin-1") or None)
        self.send_header("Date", self.date_time_string())
        if reply.content_type:
            self.send_header("Content-Type", reply.content_type)
        for key, value in reply.headers.items():
            self.send_header(key, value)
        for cookie in reply.cookies:
            self.send_header("Set-Cookie", cookie)
        length = reply.length()
        bodiless = self.command == "HEAD" or reply.status in (204, 304)
        chunks = length is None and self.request_version != "HTTP/1.0"
        if chunks:
            self.send_header("Transfer-Encoding", "chunked")
        elif length is None:
            self.send_header("Connection", "close")  # the end of the body is the end of the connection
        elif reply.status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if not bodiless:
            self._send_body(reply, length, chunks)

    def _send_body(self, reply: Reply, length: int | None, chunks: bool) -> None:
        sent = 0
        for piece in reply.pieces():
            sent += len(piece)
            if not chunks:
                self.wfile.write(piece)
            elif piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if chunks:
            self.wfile.write(b"0\r\n\r\n")
        elif sent != length:
            self.close_connection = True  # the file is shorter than the stated length

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the demo records its requests itself."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, demo: DemoXnat, port: int, context: ssl.SSLContext | None) -> None:
        self.demo = demo
        super().__init__(("127.0.0.1", port), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error: a client that has disconnected is no fault of the server."""


@contextmanager
def serve(demo: DemoXnat, port: int = 0, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Serve the demo on a loopback port, from a thread of this process, until the context ends. Yields its URL.

    Args:
        demo: The server.
        port: The port; 0 for any free one.
        certificate: The files of a certificate and of its key, to serve HTTPS.
    """
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    with _Server(demo, port, context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}{demo.site.context_path}"
        demo.site.url = url
        try:
            yield url
        finally:
            server.shutdown()
            with contextlib.suppress(RuntimeError):
                thread.join()
