"""In place of `longwave-train`, for tests of the demo itself: a bundle and a rehearsal that were made before, in no time.

Run as a script with the trainer's arguments. BUNDLE is the bundle to "export"; SLOW names a command that never ends.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from rehearsed import META, write_rehearsal

command, *arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--out") + 1])
print(f"stand-in: {command} {arguments[0]}")
if command == os.environ.get("SLOW"):
    time.sleep(600)
if command == os.environ.get("BROKEN"):
    print("stand-in: something is wrong", file=sys.stderr)
    sys.exit(3)
if command == "prepare":
    if arguments[0] == "online-retail":
        print("error: no network", file=sys.stderr)
        sys.exit(2)
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": "abc"}))
elif command == "train":
    folder.mkdir()  # fails if the demo left an older run there
elif command == "export":
    shutil.copytree(os.environ["BUNDLE"], folder / "current")
elif command == "rehearse":
    write_rehearsal(folder)
elif command == "evaluate":
    limit = int(arguments[arguments.index("--limit") + 1])
    estimates = {"recall@20": {"mean": 0.25}, "ndcg@20": {"mean": 0.125}}
    models = {name: {"metrics": estimates} for name in ("longwave", "popularity")}
    folder.mkdir()
    report = {"ours": "longwave", "queries": limit or META["queries"], "models": models}
    (folder / "report.json").write_text(json.dumps(report))
