"""A web server on this machine that misbehaves as a test tells it to."""

import http.server
import threading

import pytest
from misbehaving import Handler


@pytest.fixture
def server():
    """.url; .on(path, *behaviours): one for each request, the last for all that follow;
    .asked: (path, Range header) of every request."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.scripts, server.over = [], {}, threading.Event()
        server.daemon_threads = True
        server.url = f"http://127.0.0.1:{server.server_port}"

        def on(path, *behaviours):
            server.scripts[path] = list(behaviours)
            return server.url + path

        server.on = on
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
