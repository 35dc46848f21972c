"""What the launch scripts see of the training program, in milliseconds: --print-config, ranks, signals, exit.json.

CONFIG holds ``run.dir`` and, under ``act``: ``code`` to end with (without it, wait for a stop request), ``record``
whether rank 0 writes exit.json, ``late_seconds`` before it does, ``deaf_seconds`` before stop requests are heard,
``refuse`` to be refused, ``note`` to leave the script a note.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml


def main() -> int:
    """Act as told and return the exit code."""
    config = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    act = {"code": None, "record": True, "deaf_seconds": 0, "late_seconds": 0, "refuse": False, "note": False}
    act |= config["act"]
    if act["refuse"]:
        print("error: refused", file=sys.stderr)
        return 3
    if "--print-config" in sys.argv:
        print(yaml.safe_dump(config), end="")
        return 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stop request too: torchrun's, when another rank ends first
    directory, rank = Path(config["run"]["dir"]), os.environ["RANK"]
    directory.mkdir(parents=True, exist_ok=True)
    world = {"arguments": sys.argv[2:], "environment": dict(os.environ)}
    started = directory / f"rank-{rank}.json.writing"
    started.write_text(json.dumps(world), encoding="utf-8")
    started.rename(directory / f"rank-{rank}.json")
    time.sleep(act["deaf_seconds"])
    # torchrun ends the other ranks as soon as one fails.
    others = [directory / f"rank-{other}.json" for other in range(int(os.environ["WORLD_SIZE"]))]
    while not all(other.exists() for other in others):
        time.sleep(0.05)
    code = 75 if act["code"] is None else act["code"]
    if act["code"] is None:
        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(True))
        while not heard:
            time.sleep(0.05)
        note = Path(os.environ["CARD_LAUNCH_NOTES"]) / "stop"
        if note.exists():
            (directory / f"cause-{rank}").write_text(note.read_text(encoding="utf-8"), encoding="utf-8")
    if act["note"]:
        note = Path(os.environ["CARD_LAUNCH_NOTES"]) / "exit.json"
        note.write_text(json.dumps({"code": code, "reason": "another run's"}), encoding="utf-8")
    if rank == "0" and act["record"]:
        time.sleep(act["late_seconds"])
        (directory / "exit.json").write_text(json.dumps({"code": code, "reason": "told to"}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
