"""robot-cl serve"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from robot_cl.commands.verb import Call, Outcome, Verb

ADDRESS = "127.0.0.1"  # this machine alone; there is no option to change that


@dataclass
class ServeOptions:
    """Options of `serve`."""

    port: int = 8000  # of 127.0.0.1; 0: any free one
    runs: str | None = None  # folder of runs; none: runs
    library: str | None = None  # folder of skills; none: $ROBOT_CL_LIBRARY, else library

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; expected 0 to 65535")


def run(call: Call, options: ServeOptions) -> Outcome:
    import uvicorn

    from robot_cl.paths import library_root, runs_root
    from robot_cl.serve.app import make_app
    from robot_cl.serve.index import RunIndex

    root = Path(options.runs).absolute() if options.runs else runs_root()
    library = Path(options.library).absolute() if options.library else library_root()
    if options.runs and not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; runs= names the one that holds run folders")
    listening = _listen(options.port)
    index = RunIndex(root)
    index.watch()
    sys.setswitchinterval(0.001)  # a reader should not wait for the thread that looks at the folder
    call.resume = "nothing was written"
    call.say(f"runs of {root}\nhttp://{ADDRESS}:{listening.getsockname()[1]}  ·  Ctrl-C ends it")
    config = uvicorn.Config(make_app(index, library), log_level="warning", access_log=False, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        index.close()
    return Outcome({"runs": str(root)})


def _listen(port: int) -> socket.socket:
    """Raises OSError in one sentence where the port is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
    except OSError as problem:
        raise OSError(f"port {port} of {ADDRESS} cannot be had ({problem.strerror}); try port=0") from None
    listening.listen(1024)
    return listening


SERVE = Verb(
    run=run,
    usage="[key=value ...]",
    about="Runs, skills and reports of a folder in a browser, with the curves of what is being trained. Read-only,\n"
    "and on this machine alone: it listens on 127.0.0.1 and on nothing else.",
    examples=("robot-cl serve", "robot-cl serve port=0 runs=/data/runs"),
    options=lambda: ServeOptions,
)
