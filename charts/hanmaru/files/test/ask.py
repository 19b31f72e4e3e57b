"""Is the gateway ready, and, given a tenant's key, does it complete? `helm test` runs this in the gateway's image.

Tells of the answer only how long it is. Exit code 1 with one sentence when something is wrong.
"""

import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request

READY_DEADLINE_S = 120.0
ANSWER_DEADLINE_S = 120.0
BASE = os.environ["HANMARU_TEST_URL"]
# The certificate is for the name that callers use; this asks by the Service's.
UNVERIFIED = ssl.create_default_context()
UNVERIFIED.check_hostname = False
UNVERIFIED.verify_mode = ssl.CERT_NONE


def ask(path, body=None, key=None, timeout_s=10.0):
    """The body of an answer. Raises OSError for any other than 2xx."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, headers)
    with urllib.request.urlopen(request, timeout=timeout_s, context=UNVERIFIED) as response:
        return response.read()


def await_ready():
    """Return when the gateway says so; exit with what it says instead once READY_DEADLINE_S have passed."""
    deadline_s = time.monotonic() + READY_DEADLINE_S
    while True:
        try:
            ask("/ready")
            return
        except OSError as error:
            if time.monotonic() > deadline_s:
                sys.exit(told("/ready", error))
        time.sleep(1)


def told(path, error):
    """One sentence about a request that went wrong, with the gateway's own words where it said some."""
    said = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
    return f"{BASE}{path}: {error} {said}".rstrip()


def main():
    """Ask, and tell."""
    await_ready()
    print("the gateway is ready")
    key_file = os.environ.get("HANMARU_TEST_KEY_FILE")
    if not key_file:
        return
    key = pathlib.Path(key_file).read_text().strip()
    path = "/v1/models"
    try:
        models = [model["id"] for model in json.loads(ask(path, key=key))["data"]]
        if not models:
            sys.exit("the key may use no model that is served; see `kubectl get tenants,modeldeployments`")
        model = os.environ.get("HANMARU_TEST_MODEL") or models[0]
        body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say one word."}]}
        path = "/v1/chat/completions"
        answer = json.loads(ask(path, body, key, ANSWER_DEADLINE_S))
    except (OSError, ValueError) as error:  # a ValueError: what answers there speaks no JSON
        sys.exit(told(path, error))
    print(f"{model} completed {answer['usage']['completion_tokens']} tokens")


main()
