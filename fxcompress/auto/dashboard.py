"""optuna-dashboard on a port of the loopback address."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fxcompress.errors import ConfigError, FxcompressError

if TYPE_CHECKING:
    import optuna

HOST = "127.0.0.1"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not told."""


class Dashboard:
    """A server in a thread of its own; ``url`` says where."""

    def __init__(self, storage: optuna.storages.BaseStorage, port: int) -> None:
        """Begin to serve; port 0 is any that is free.

        Raises:
            FxcompressError: if optuna-dashboard is missing or the port is taken.
        """
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
            raise ConfigError(f"port: expected a number from 0 to 65535, got {port!r}")
        try:
            from optuna_dashboard import wsgi
        except ImportError as error:
            raise FxcompressError(
                f"the dashboard needs optuna-dashboard, which cannot be imported ({error}); install it: "
                "pip install 'fxcompress[auto]'"
            ) from error
        try:
            self._server = make_server(HOST, port, wsgi(storage), _Server, _Quiet)
        except OSError as error:
            raise FxcompressError(
                f"port {port}: the dashboard cannot be served there ({error.strerror}); give another port"
            ) from error
        self.url = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def serving(storage: optuna.storages.BaseStorage, port: int) -> Iterator[Dashboard]:
    """A dashboard for the duration."""
    dashboard = Dashboard(storage, port)
    try:
        yield dashboard
    finally:
        dashboard.stop()
