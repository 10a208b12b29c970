"""A handler for tests/command.rs: does what the request says."""

import json
import os
import signal
import subprocess
import sys
import time

request = json.loads(sys.stdin.readline())
do = request["do"]


def say(**message):
    print(json.dumps(message), flush=True)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


if do == "progress":
    say(progress=40, message="half way, nearly")
    wait_for(request["file"])
    say(progress=90)
    say(result={"sum": sum(request["numbers"])})
elif do == "environment":
    say(result=dict(os.environ))
elif do == "error":
    say(error={"type": "urn:example:too-wide", "title": "Too wide", "status": 409, "width": 3})
elif do == "second attempt":
    if os.environ["ARR_ATTEMPT"] == "1":
        say(error={"title": "Not now", "status": 503}, retryable=True)
    else:
        say(result=None)
elif do == "later":
    if os.environ["ARR_ATTEMPT"] == "1":
        say(error={"title": "Busy", "status": 503}, retryable=True, retryAfterSeconds=2.5)
    else:
        say(result="done")
elif do == "crash":
    print("no such table: images", file=sys.stderr)
    sys.exit(3)
elif do == "nonsense":
    print("Hello!")
elif do == "line":
    sys.stdout.write("x" * 100_000)
elif do == "flood":
    while True:
        print("{}")
elif do == "stay":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    with open(request["file"] + ".new", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(request["file"] + ".new", request["file"])
    say(progress=10, message="staying")
    while True:
        time.sleep(1)
