"""Asks `patchcaption serve` with Python's own library alone, to copy where nothing can be installed.

    python examples/http_client.py http://127.0.0.1:8000 photo.jpg 276,174,507,399 90,420,321,648

The image is encoded once; its features are kept by the service, for these boxes and any other region later.
"""

import json
import os
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

server, image, *boxes = sys.argv[1:]
token = os.environ.get("PATCHCAPTION_TOKEN", "")


def post(path: str, body: bytes, kind: str) -> dict:
    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(server + path, body, headers)) as answer:
            return json.load(answer)
    except HTTPError as error:
        sys.exit(f"{error.code}: {error.read().decode()}")  # the service says why in JSON, a proxy in its own words
    except URLError as error:
        sys.exit(f"{server}: {error.reason}")


features = post("/v1/features", Path(image).read_bytes(), "application/octet-stream")
regions = [{"kind": "box", "xyxy": json.loads(f"[{box}]")} for box in boxes]
question = json.dumps({"regions": regions or [{"kind": "whole_image"}]}).encode()
for caption in post(f"/v1/features/{features['id']}/captions", question, "application/json")["captions"]:
    print(caption["text"] or caption["error"])
