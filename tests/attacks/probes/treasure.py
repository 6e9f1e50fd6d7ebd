"""Runs inside a sandbox: looks for secrets everywhere it can read; prints JSON {needle: [places]}.

/workspace/plan.json (or argv[1]): JSON {"needles": {name: text}, "since": unix time}. Files that are older than the secret
cannot hold it and are passed over, so the host's /usr does not take minutes.
"""

import base64
import json
import os
import re
import stat
import sys

plan = json.load(open(sys.argv[1] if sys.argv[1:] else "/workspace/plan.json"))
needles = {}
for name, text in plan["needles"].items():
    raw = text.encode()
    needles[name] = [
        raw,
        raw[::-1],
        raw.hex().encode(),
        *(base64.b64encode(b" " * k + raw)[4:-4] for k in range(3)),
    ]
places = {name: [] for name in needles}
counts = {"files": 0, "processes": 0, "bytes": 0}


def look(place, data):
    counts["bytes"] += len(data)
    for name, forms in needles.items():
        if any(form in data for form in forms):
            places[name].append(place)


def read_file(path):
    if path == "/workspace/plan.json":
        return  # holds the needles
    try:
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode) or max(info.st_mtime, info.st_ctime) < plan["since"]:
            return
        with open(path, "rb") as file:
            counts["files"] += 1
            tail = b""
            while chunk := file.read(1 << 20):
                look(path, tail + chunk)
                tail = chunk[-300:]
    except OSError:
        pass


for top, directories, names in os.walk("/"):
    if top == "/":
        directories[:] = [d for d in directories if d not in ("proc", "sys")]
    for name in names:
        read_file(os.path.join(top, name))

me = str(os.getpid())
for pid in filter(str.isdigit, os.listdir("/proc")):
    counts["processes"] += 1
    for part in ("environ", "cmdline"):
        try:
            with open("/proc/%s/%s" % (pid, part), "rb") as file:
                look("/proc/%s/%s" % (pid, part), file.read())
        except OSError:
            pass
    if pid == me:
        continue
    try:
        with open("/proc/%s/maps" % pid) as maps, open("/proc/%s/mem" % pid, "rb", 0) as memory:
            for line in maps:
                match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
                if not match:
                    continue
                start, end = (int(x, 16) for x in match.groups())
                try:
                    memory.seek(start)
                    look("/proc/%s/mem" % pid, memory.read(min(end - start, 64 << 20)))
                except (OSError, OverflowError, ValueError):
                    pass
    except OSError:
        pass
print(json.dumps({"places": places, "counts": counts, "environ": dict(os.environ)}))
