"""Try to read, change, replace or remove files of the host by every name that may lead to them."""

import json
import os
import sys

plan = json.load(open("/workspace/plan.json"))


def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "REACHED"


def append(path):
    with open(path, "ab") as file:
        file.write(b'{"seq":1}\n')


def names(path):
    yield path
    for process in ["1", "self", str(os.getppid())]:
        yield "/proc/%s/root%s" % (process, path)
        yield "/proc/%s/cwd/../../../../..%s" % (process, path)
    link = "/workspace/link-%d" % os.getpid()
    if os.path.islink(link):
        os.unlink(link)
    try:
        os.symlink(path, link)
    except OSError:
        return  # uid 0 has no name in a workspace that is mapped to the agent's uid
    yield link


found = {}
for path in plan["paths"]:
    for name in names(path):
        actions = [
            ("read", lambda: open(name, "rb").read(1)),
            ("append", lambda: append(name)),
            ("truncate", lambda: os.truncate(name, 0)),
        ]
        if not name.startswith("/workspace/"):
            actions.append(("remove", lambda: os.unlink(name)))
        for what, action in actions:
            if attempt(action) == "REACHED":
                found["%s %s" % (what, name)] = True

held = []
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        descriptors = os.listdir("/proc/%s/fd" % process)
    except OSError:
        continue
    for descriptor in descriptors:
        try:
            target = os.readlink("/proc/%s/fd/%s" % (process, descriptor))
        except OSError:
            continue
        if "journal" in target and not target.startswith("/workspace"):
            held.append(target)

sys.stdout.write(json.dumps({"reached": found, "held": held}))
