"""healthcheck.py [PATH]: exit 0 if and only if the server answers and its model is loaded.

PATH is the page's where none is given, $PORT where it listens. Standard library only: Docker runs it every few seconds.
"""

import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

port = os.environ.get("PORT", "6006")
base = os.environ.get("STREAMLIT_SERVER_BASE_URL_PATH", "").strip("/")  # of the page
path = sys.argv[1] if len(sys.argv) > 1 else f"{base and '/' + base}/_stcore/health"
try:
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # whatever proxy Docker set for this container
    direct.open(f"http://127.0.0.1:{port}{path}", timeout=4).read()
    folder = Path(tempfile.gettempdir()) / f"recipe-{os.getuid()}"  # as in recipe/serving/model_host.py
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        sys.exit(f"{folder} is not this user's own")
    told = json.loads((folder / f"recipe-demo-{port}.json").read_text(encoding="utf-8"))
except (OSError, ValueError) as error:
    sys.exit(f"the page does not answer: {error}")
print(f"{told['state']}: {told['message']}")
sys.exit(told["state"] != "ready")
