"""Pushing and pulling: through a folder, and at the boundary of the hub's client.

The client's own errors are met by asking a server on this machine that answers as the hub does.
"""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl

from covpool.cli import main
from covpool.data import Preprocessing
from covpool.publish.hub import pull, push
from covpool.train.config import ModelConfig, RunConfig
from covpool.train.published import read_published, write_published


@pytest.fixture
def model(tmp_path):
    preprocessing = Preprocessing(channels=1, image_size=8, resize=8, mean=(0.5,), std=(0.2,))
    metadata = {
        "version": "0",
        "classes": ["a"],
        "vector_layout": "triu-row-major-v1",
        "images": {},
        "schedule": "gap",
        "preprocessing": preprocessing.to_dict(),
        "epoch": 0,
        "config": RunConfig(model=ModelConfig(method="gap")).to_dict(),
    }
    path = tmp_path / "model"
    write_published(path, {"weight": torch.arange(3.0)}, metadata, "# card\n")
    (path / "export.json").write_text("[]")
    (path / "private-notes.txt").write_text("stays here")
    return path


PUBLIC = {"model.safetensors", "config.json", "README.md", "export.json"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_through_a_folder(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(model), "./hub/mine"]) == 0
    assert names(tmp_path / "hub" / "mine") == PUBLIC
    assert main(["pull", "./hub/mine"]) == 0
    assert names(tmp_path / "mine") == PUBLIC
    weights, metadata = read_published(tmp_path / "mine")
    assert torch.equal(weights["weight"], torch.arange(3.0))
    assert metadata == read_published(model)[1]
    address = (tmp_path / "hub" / "by address").as_uri()
    assert main(["push", str(model), address]) == 0
    assert names(tmp_path / "hub" / "by address") == PUBLIC


def test_push_calls_the_client(model):
    api = create_autospec(HfApi, instance=True, spec_set=True)
    api.create_repo.return_value = RepoUrl("https://huggingface.co/owner/name")
    assert push(model, "owner/name", private=True, api=api) == "https://huggingface.co/owner/name"
    api.create_repo.assert_called_once_with(
        "owner/name", private=True, repo_type="model", exist_ok=True
    )
    (_, arguments) = api.upload_folder.call_args
    assert arguments["repo_id"] == "owner/name"
    assert arguments["folder_path"] == model
    assert set(arguments["allow_patterns"]) == PUBLIC


def test_pull_calls_the_client(model, tmp_path):
    def download(repo_id, *, local_dir, allow_patterns, **others):
        assert others == {"repo_type": "model", "revision": "v1"}
        assert (repo_id, set(allow_patterns) >= PUBLIC) == ("owner/name", True)
        for name in PUBLIC:
            shutil.copy(model / name, local_dir)
        (Path(local_dir) / ".cache").mkdir()

    api = create_autospec(HfApi, instance=True, spec_set=True)
    api.snapshot_download.side_effect = download
    pull("owner/name", tmp_path / "new", revision="v1", api=api)
    assert names(tmp_path / "new") == PUBLIC


def test_what_is_no_model_is_not_kept(model, tmp_path):
    (model / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks version"):
        push(model, str(tmp_path / "hub"))
    with pytest.raises(ValueError, match=r"nothing was kept of .*lacks version") as raised:
        pull(str(model), tmp_path / "new")
    assert ".partial" not in str(raised.value)
    assert names(tmp_path) == {"model"}


def test_a_folder_that_is_taken_is_left_alone(model, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    for call in (lambda: push(model, str(taken)), lambda: pull(str(model), taken)):
        with pytest.raises(ValueError, match="taken exists"):
            call()
    assert names(taken) == {"thesis.txt"}
    with pytest.raises(ValueError, match="--private"):
        push(model, str(tmp_path / "new"), private=True)
    with pytest.raises(ValueError, match="--revision v1"):
        pull(str(model), tmp_path / "new", revision="v1")
    with pytest.raises(ValueError, match="no folder"):
        pull(str(tmp_path / "nothing"), tmp_path / "new")


@pytest.fixture
def hub():
    """Gives a client of a server that answers every request with one status and error code."""
    servers = []

    def answering(status, code=""):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                body = json.dumps({"error": "no"}).encode()
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_made_up")

    yield answering
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "RepoNotFound", "has no repository 'owner/name', or it is private"),
        (404, "RevisionNotFound", "no such revision"),
        (403, "GatedRepo", "'owner/name' is gated"),
        (403, "", "does not let you read 'owner/name' .status 403."),
        (418, "", "refused 'owner/name' .status 418."),
    ],
)
def test_refusals_of_pull_in_plain_words(hub, tmp_path, status, code, expected):
    with pytest.raises(ValueError, match=expected):
        pull("owner/name", tmp_path / "new", api=hub(status, code))
    assert names(tmp_path) == set()


def test_refusals_of_push_in_plain_words(hub, model):
    with pytest.raises(ValueError, match=r"does not let you write 'owner/name' \(status 401\)"):
        push(model, "owner/name", api=hub(401))
    with pytest.raises(ValueError, match="no name of a repository"):
        push(model, "owner/name/more", api=hub(200))


def test_no_network_in_plain_words(model, tmp_path, monkeypatch):
    closed = HfApi(endpoint="http://127.0.0.1:9", token="hf_made_up")
    with pytest.raises(ValueError, match="the hub cannot be reached for 'owner/name'"):
        push(model, "owner/name", api=closed)
    with pytest.raises(ValueError, match="the hub cannot be reached for 'owner/name'"):
        pull("owner/name", tmp_path / "new", api=closed)
    assert names(tmp_path) == {"model"}
