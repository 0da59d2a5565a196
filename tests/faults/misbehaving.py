"""How a web server may answer: well, or in one of the ways that spoil a download."""

import contextlib
import http.server
import socket
import struct


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        script = self.server.scripts.get(self.path)
        if not script:
            return self.send_error(404)
        behaviour = script.pop(0) if len(script) > 1 else script[0]
        with contextlib.suppress(OSError):  # the client is gone
            behaviour(self)

    def start(self, content: bytes, kind: str = "application/octet-stream") -> bytes:
        """Send the headers for `content`; returns the part of it that was asked for."""
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if first >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        self.send_response(206 if first else 200)
        if first:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        return content[first:]

    def log_message(self, *_):
        pass


def gives(content: bytes, kind: str = "application/octet-stream"):
    """All of it, or from where the client asks."""
    return lambda handler: handler.wfile.write(handler.start(content, kind))


def answers(status: int, **headers: str):
    """An empty reply with this status."""

    def behaviour(handler):
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return behaviour


def stops_after(n: int, content: bytes, reset: bool = False):
    """Announce everything, send `n` bytes of it, then hang up (or reset the connection)."""

    def behaviour(handler):
        handler.wfile.write(handler.start(content)[:n])
        handler.wfile.flush()
        if reset:  # a zero linger time makes close() send RST
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_WR) if not reset else handler.connection.close()

    return behaviour


def login_page(handler):
    """What a captive portal says to every request, whatever part of a file was asked for."""
    del handler.headers["Range"]
    page = b"<!DOCTYPE html><title>Hotel WLAN</title>Please log in"
    handler.wfile.write(handler.start(page, "text/html"))


def never_ends(handler):
    """Bytes for as long as the client listens, without saying how many."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 2**16)


def says_nothing(handler):
    """Accept the connection, then wait until the test is over."""
    handler.server.over.wait()
