"""Weights on a hub, which is a small server on 127.0.0.1, and in folders."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from manas_jax.errors import UserError
from manas_jax.inference import hub, pretrained
from manas_jax.workdir.weights import load_derived

COMMIT = "0" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    """What `huggingface_hub` asks for when it uploads and downloads files of a repository."""

    files: dict[str, bytes]

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self._answer(200, json.dumps({"url": f"https://huggingface.co/us/{name}"}).encode())
        elif self.path.startswith("/api/models/us/rain/preupload/"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, json.dumps({"files": files}).encode())
        elif self.path.startswith("/api/models/us/rain/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            commit = {
                "commitUrl": f"https://huggingface.co/us/rain/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
            self._answer(200, json.dumps(commit).encode())
        elif self.path == "/api/validate-yaml":
            self._answer(200, b'{"errors": [], "warnings": []}')
        else:
            self._answer(404)

    def do_GET(self):
        start, _, name = self.path.partition("/resolve/main/")
        if start == "/us/rain" and name in self.files:
            etag = f'"{hashlib.sha256(self.files[name]).hexdigest()}"'
            self._answer(200, self.files[name], ETag=etag, X_Repo_Commit=COMMIT)
        else:
            self._answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Hub", (_Hub,), {"files": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler.files
        running.shutdown()
        thread.join()


def _python(program, tmp_path, endpoint, *arguments):
    """Runs a program as a user of this hub; its address is read when the library is imported."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "secret"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **hub}, capture_output=True, text=True, timeout=120
    )


def test_pushed_weights_are_those_that_come_back(tmp_path, weights, server):
    pytest.importorskip("huggingface_hub")
    endpoint, files = server
    program = """
import sys
from manas_jax import Derainer
from manas_jax.inference import hub, pretrained
print(Derainer.from_pretrained(sys.argv[1]).push_to_hub("us/rain"))
print(pretrained.find("hf://us/rain"))
try:
    pretrained.find("hf://us/snow")
except hub.UserError as error:
    print(error)
"""
    done = _python(program, tmp_path, endpoint, weights)
    assert done.returncode == 0, done.stderr
    commit, file, refusal = done.stdout.splitlines()
    assert commit == f"https://huggingface.co/us/rain/commit/{COMMIT}"
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert 'from_pretrained("hf://us/rain")' in files["README.md"].decode()
    _assert_same_weights(file, weights)
    assert refusal.startswith("hf://us/snow: the Hugging Face Hub refuses (")


def _assert_same_weights(file, weights):
    (variables, genotype, _), (wanted, expected, _) = map(load_derived, (file, weights))
    assert genotype == expected
    for stored, kernel in zip(_leaves(variables), _leaves(wanted), strict=True):
        np.testing.assert_array_equal(stored, kernel)


def _leaves(variables):
    import jax

    return jax.tree.leaves(variables)


def test_a_saved_folder_opens_again(tmp_path, weights):
    variables, genotype, provenance = load_derived(weights)
    folder = tmp_path / "ours"
    hub.save(folder, variables, genotype, provenance)
    _assert_same_weights(pretrained.find(folder), weights)
    assert json.loads((folder / hub.CONFIG).read_text()) == json.loads(genotype.to_json())
    card = (folder / hub.CARD).read_text()
    assert card.startswith("---\nlibrary_name: manas_jax\n") and str(folder) in card
    for name, text in provenance.items():
        assert f"- {name}: {text}" in card


@pytest.mark.parametrize("address", ["hf://", "hf://rain", "hf://us/rain/more", "hf://us/rain@"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="give hf://OWNER/NAME or hf://OWNER/NAME@REVISION"):
        pretrained.find(address)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        pretrained.find(tmp_path)


def test_no_connection_is_one_line(tmp_path):
    pytest.importorskip("huggingface_hub")
    program = """
import sys, time
from manas_jax import derain
time.sleep = lambda _: None  # what the library does between its attempts
sys.exit(derain.main([sys.argv[1], "-o", sys.argv[2], "--weights", "hf://us/rain"]))
"""
    (tmp_path / "picture.png").touch()
    paths = tmp_path / "picture.png", tmp_path / "out.png"
    done = _python(program, tmp_path, "http://127.0.0.1:9", *paths)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hf://us/rain: the Hugging Face Hub refuses (" in done.stderr.splitlines()[-1]
