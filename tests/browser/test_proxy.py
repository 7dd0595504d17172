"""The page behind the nginx server that docs/page-and-containers.md shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_server import free_port

from recipe.paths import ROOT

from .conftest import Server
from .test_page import EN, answered, ask, button, open_, reload_kept

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not shutil.which("nginx") or not shutil.which("openssl"), reason="apt-get install nginx openssl"
    ),
]
LARGEST = 1_000_000  # bytes of a file, by Streamlit's uploader
KEEPS_HOST = "        proxy_set_header Host $host;\n"
TEMPORARY = "".join(f"{kind}_temp_path temp;\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


@pytest.fixture(scope="module")
def page_server(serve: Callable[..., Server], work: Path) -> Server:
    names = {"STREAMLIT_SERVER_BASE_URL_PATH": "/chat", "PAGE_HOSTS": "chat.example.com"}
    return serve("demo", "--work", str(work), "--run", "quickstart", **names)


@pytest.fixture(scope="module")
def nginx(page_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Ports of nginx with the server of the docs, and with one that rewrites Host."""
    folder = tmp_path_factory.mktemp("nginx")
    subject = ("-subj", "/CN=chat.example.com", "-keyout", folder / "key", "-out", folder / "certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject], check=True, capture_output=True
    )
    text = (ROOT / "docs" / "page-and-containers.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    here = {
        "/etc/ssl/chat.pem": str(folder / "certificate"),
        "/etc/ssl/chat.key": str(folder / "key"),
        "127.0.0.1:6006": f"127.0.0.1:{page_server.port}",
    }
    for shown, real in here.items():
        assert shown in block
        block = block.replace(shown, real)
    assert KEEPS_HOST in block
    ports = free_port(), free_port()
    servers = [
        each.replace("443 ssl", f"127.0.0.1:{port} ssl")
        for each, port in zip((block, block.replace(KEEPS_HOST, "")), ports, strict=True)
    ]
    user = "user root; " if os.getuid() == 0 else ""  # whose temporary folder it is
    own = f"daemon off; {user}pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {TEMPORARY}"
    (folder / "nginx.conf").write_text(own + "".join(servers) + "}")
    with subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"]) as process:
        try:
            for port in ports:
                end = time.monotonic() + 10
                while process.poll() is None and time.monotonic() < end:
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.05)
            yield ports
        finally:
            process.send_signal(signal.SIGQUIT)


@pytest.mark.parametrize("rewritten", [False, True], ids=["host kept", "host rewritten"])
def test_the_nginx_server_of_the_docs_passes_all_of_the_page(
    nginx: tuple[int, int], visit: Callable[..., Any], rewritten: bool
) -> None:
    page = visit(f"https://chat.example.com:{nginx[rewritten]}/chat/")
    ask(page, "What is the capital of France?")
    assert "Paris" in answered(page)[0]
    reload_kept(page)
    assert "Paris" in answered(page)[0]
    open_(page, EN("conversation"))
    with page.expect_download() as download:
        button(page, EN("export")).click()
    content = Path(download.value.path()).read_bytes()
    # As large as the page takes. nginx takes 1 MiB, and what is sent around a file counts.
    file = {"name": "c.json", "mimeType": "application/json", "buffer": content.ljust(LARGEST)}
    button(page, EN("new_chat")).first.click()
    page.locator("input[type=file]").set_input_files([file])
    page.get_by_text(EN("imported", turns=1)).wait_for()
    assert "Paris" in answered(page)[0]
