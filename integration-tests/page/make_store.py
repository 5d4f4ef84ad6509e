#!/usr/bin/env python3
"""Makes a synthetic store: make_store.py DIR LAYERS.

The layers are those of a farm with 16 workers on four hosts. They have stacks, timings, sizes, last uses, failures and
commands, but empty trees. The same arguments make the same store. One more layer has an invalid
layer.json, and one has a name, a command and a phase that would be markup if they were not escaped.
"""

import json
import os
import random
import sys
import time

WORKERS = 16
START = 1_780_000_000
ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028\u202e&amp;"


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def write(directory, meta, argv, host, used):
    os.makedirs(os.path.join(directory, "fs"))
    if argv:
        with open(os.path.join(directory, "run.json"), "w") as file:
            json.dump({"argv": argv, "host": host}, file)
    if used:
        path = os.path.join(directory, "last_used")
        open(path, "w").close()
        os.utime(path, (used, used))
    with open(os.path.join(directory, "layer.json"), "w") as file:
        file.write(meta if isinstance(meta, str) else json.dumps(meta))


def phases(seconds, chance):
    timing = {"touch": 0.0007, "plan": 0.0001, "merge": 0.0, "prep_upper": 0.0001, "overlay_mount": 0.0005}
    if chance.random() < 0.1:
        timing["merge"] = round(seconds * 0.2, 6)
    timing["config"] = 0.0004
    timing["runc_run"] = round(seconds * 0.75, 6)
    timing["overlay_umount"] = round(seconds * 0.02, 6)
    timing["cleanup"] = 0.0007
    return {**timing, "total": round(seconds, 6)}


def main(store, number):
    chance = random.Random(number)
    names, stacks = [], []
    workers = [START] * WORKERS
    for index in range(number):
        name = f"{chance.getrandbits(48):012x}" if index % 3 else f"package-{index}"
        # A layer stands on up to three others of its group or of the first group, and on all that these stand on.
        group = range(index - index % 60, index) if index % 60 and chance.random() < 0.8 else range(min(index, 60))
        direct = {chance.choice(group) for _ in range(chance.randrange(4))} if group else set()
        # Every store has a layer that stands on two others, and one on top of that.
        direct = {0: set(), 1: set(), 2: {0, 1}, 3: {2}}.get(index, direct)
        stack = sorted({layer for lower in direct for layer in (lower, *stacks[lower])}, reverse=True)
        worker = min(range(WORKERS), key=workers.__getitem__)
        seconds = min(900, chance.lognormvariate(3, 1))
        # The farm starts a second time after half of the layers.
        if index == number // 2:
            workers = [max(workers) + 3600] * WORKERS
        workers[worker] += seconds + chance.random()
        failed = chance.random() < 0.03
        skipped = bool(stack) and chance.random() < 0.02
        meta = {
            "exit_status": 2 if failed else 1 if skipped else 0,
            "parent_hashes": [names[lower] for lower in stack],
            "uid": 0,
            "gid": 0,
            "base_hash": "debian-12" if index % 7 else "debian-13",
            "disk_usage": 0 if index % 50 == 49 else int(chance.lognormvariate(13, 2)),
            "timing": {} if skipped else phases(seconds, chance),
            "created_at": stamp(workers[worker]),
            "failed_dep": names[stack[0]] if skipped else None,
        }
        argv = ["sh", "-c", f"cd /src/{name} && ./configure --prefix=/usr && make install"] if index % 5 else None
        used = workers[worker] + chance.randrange(40 * 86400) if index % 9 else None
        write(os.path.join(store, name), meta, argv, f"n{worker % 4 + 1}", used)
        names.append(name)
        stacks.append(stack)
    hostile = {
        "exit_status": 3,
        "parent_hashes": [ATTACK, names[0]],
        "uid": 0,
        "gid": 0,
        "base_hash": ATTACK,
        "disk_usage": 4096,
        "timing": {ATTACK: 1.5, "runc_run": 2.0},
        "created_at": stamp(START + 60),
        "failed_dep": ATTACK,
    }
    write(os.path.join(store, "hostile" + ATTACK.replace("/", "\\")), hostile, ["sh", ATTACK], ATTACK, None)
    write(os.path.join(store, "invalid"), '{"exit_status": "' + ATTACK + '"}', None, None, None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
