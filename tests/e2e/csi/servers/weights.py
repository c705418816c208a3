"""The model of the servers: a matrix in the format of safetensors, and nowhere to write.

/app/open and /tmp are the test's: it says when a server may load, and is told that it waits and has loaded.
"""

import errno
import json
import os
import time
from pathlib import Path

import numpy
from safetensors import safe_open


def touch(directory):
    """What becomes of a new file there."""
    try:
        (Path(directory) / "scratch").touch()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "written"


class Weights:
    def __init__(self, directory):
        directory = Path(directory)
        Path("/tmp/waits").touch()
        while not Path("/app/open").exists():
            time.sleep(0.05)
        began = time.monotonic()
        self.type = json.loads((directory / "config.json").read_text())["model_type"]
        with safe_open(directory / "model.safetensors", framework="numpy") as opened:
            self.matrix = opened.get_tensor("w")
        took = time.monotonic() - began
        told = {"uid": os.getuid(), "model": touch(directory), "root": touch("/var/tmp"), "seconds": round(took, 3)}
        Path("/tmp/loads").write_text(json.dumps(told))
        Path("/tmp/loads").rename("/tmp/loaded")

    def answer(self, x):
        return {"type": self.type, "y": (numpy.float32(x) @ self.matrix).tolist()}
