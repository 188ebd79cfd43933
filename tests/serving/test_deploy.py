"""What Dockerfile and compose.yaml name is there: extras, files, commands, options."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib

import pytest
import typer
import yaml

from conftest import ROOT
from headstart.cli import app as cli

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def instructions(name):
    return re.findall(rf"^\s*{name} (.*)$", DOCKERFILE, re.M)


def listed(name):
    """The words of an instruction in JSON's form."""
    (text,) = instructions(name)
    return json.loads(text)


def test_what_is_installed_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"headstart\[([a-z,]+)\] @", DOCKERFILE)
    assert {"serve", "openvino", "train"} == set(extras.split(","))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (copied,) = instructions("COPY")
    assert copied.split() == ["dist/*.whl", "constraints.txt", "/tmp/"]
    (pin,) = re.findall(r"torch==([\d.]+)", DOCKERFILE)
    assert re.search(rf"^torch=={re.escape(pin)}", (ROOT / "constraints.txt").read_text(), re.M)
    (image,) = instructions("FROM")
    assert image == "python:3.11-slim" and project["requires-python"] == ">=3.11"


def test_the_command_has_these_options():
    program, command = listed("ENTRYPOINT")
    assert program == "headstart"
    known = typer.main.get_command(cli.application()).commands[command]
    options = {name for each in known.params for name in each.opts}
    words = listed("CMD")
    assert {word for word in words if word.startswith("--")} <= options
    assert "--token-file" in words and instructions("USER") == ["headstart"]


def test_compose_mounts_what_the_command_reads():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"][
        "model"
    ]
    targets = {volume.split(":")[1]: volume.split(":")[2] for volume in service["volumes"]}
    words = listed("CMD")
    assert targets == {words[0]: "ro", words[words.index("--token-file") + 1]: "ro"}
    assert service["read_only"] is True and service["tmpfs"] == ["/tmp"]
    (port,) = instructions("EXPOSE")
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]


@pytest.mark.slow
def test_the_health_check_tells_a_server_from_none(tmp_path):
    """The server as the image runs it, with a token file; the check needs no token."""
    pytest.importorskip("fastapi", reason="needs headstart[serve]")
    (check,) = re.findall(r"HEALTHCHECK .*?CMD (\[.*\])", DOCKERFILE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [sys.executable, *json.loads(check.replace("8000", port))[1:]]
    (tmp_path / "tokens").write_text("secret\n")
    command = shlex.join(listed("CMD")).replace("/model", "bit-mini")
    command = command.replace("/run/tokens", str(tmp_path / "tokens"))
    server = subprocess.Popen(
        [sys.executable, "-m", "headstart", "serve", *shlex.split(command), "--port", port]
    )
    try:
        for _ in range(600):
            if subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                break
            assert server.poll() is None, "the server has ended"
            time.sleep(0.2)
        else:
            raise AssertionError("the check never passed")
    finally:
        server.terminate()
        server.wait(60)
    assert subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 1
