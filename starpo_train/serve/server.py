"""The server's life: listen, load, answer, stop."""

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path

import torch
import uvicorn

from starpo_train.errors import ServerError
from starpo_train.serve.app import ModelServer

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
_HIGHEST_PORT = 65_535


def serve(
    model_path: str | Path,
    *,
    host: str = DEFAULT_HOST,
    port: int = 0,
    threads: int = 1,
    max_batch: int = 32,
    ready_file: Path | None = None,
    exit_with_parent: bool = False,
) -> None:
    """Serve a model until interrupted.

    Args:
        model_path: folder of a transformers causal language model.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        threads: torch threads.
        max_batch: requests decoded at once.
        ready_file: gets `{"host", "port"}` as JSON once requests are answered.
        exit_with_parent: stop when the process that started this one is gone.

    Raises:
        ModelError: the model cannot be served.
        ServerError: the address cannot be listened on.
    """
    for name, count in (("threads", threads), ("max-batch", max_batch)):
        if count < 1:
            raise ServerError(f"--{name} {count}: must be at least 1")
    torch.set_num_threads(threads)
    listener = _listen(host, port)
    server = ModelServer(model_path, max_batch=max_batch)
    config = uvicorn.Config(server.app, log_level="warning", access_log=False)
    runner = uvicorn.Server(config)
    if exit_with_parent:
        threading.Thread(target=_stop_with_parent, args=(runner,), daemon=True).start()
    if ready_file is not None:
        threading.Thread(target=_announce, args=(runner, listener, ready_file), daemon=True).start()
    logger.warning("serving %s on http://%s:%d/v1", model_path, *listener.getsockname()[:2])
    try:
        runner.run(sockets=[listener])
    finally:
        server.close()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _HIGHEST_PORT:
        raise ServerError(f"--port {port}: must be between 0 (a free one) and {_HIGHEST_PORT}")
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error


def _announce(runner: uvicorn.Server, listener: socket.socket, ready_file: Path) -> None:
    while not runner.started:
        time.sleep(0.01)
    host, port = listener.getsockname()[:2]
    temporary = ready_file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"host": host, "port": port}))
    temporary.replace(ready_file)


def _stop_with_parent(runner: uvicorn.Server) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    runner.should_exit = True
