"""TensorBoard shows a run, compares it with others, and can be started where the command is installed."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from support import Cifarctl

RUN = ("--data", "synthetic", "--limit", 200, "--val-size", 50, "--batch-size", 50, "--epochs", 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classifiers, `one` and `two`, and of an autoencoder, `ae`."""
    from cifarctl.cli import run

    folder = tmp_path_factory.mktemp("board")
    for name, options in (
        ("one", ("train-clf", "--arch", "mlp", *RUN)),
        ("two", ("train-clf", "--arch", "mlp", *RUN, "--lr", 0.01, "--seed", 3)),
        ("ae", ("train-ae", "--arch", "conv2", "--latent-dim", 64, *RUN)),
    ):
        assert run([*map(str, options), "--quiet", "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Where TensorBoard answers, which this Python has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*map(str, line), "--load_fast", "false"], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = ""
            while "http://" not in said:
                said = server.stderr.readline()
                assert said, "TensorBoard has ended"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def ask(address: str, question: str, **how: Any) -> Any:
    """TensorBoard's answer, once it has read the three runs."""
    deadline = time.monotonic() + 60
    while len(httpx.get(f"{address}/data/runs", trust_env=False).raise_for_status().json()) < 3:
        assert time.monotonic() < deadline, "TensorBoard does not list the runs"
        time.sleep(0.2)
    return httpx.request(url=f"{address}{question}", trust_env=False, **how).raise_for_status().json()


def test_it_lists_the_runs(address: str) -> None:
    assert set(ask(address, "/data/runs", method="GET")) == {"one", "two", "ae"}


def test_its_hparams_compare_runs_by_what_they_were_started_with_and_what_they_scored(address: str) -> None:
    question = "/data/plugin/hparams/session_groups"
    everything = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"], "colParams": []}
    groups = ask(address, question, method="POST", json=everything)["sessionGroups"]
    found = {group["sessions"][0]["name"]: group for group in groups}
    assert set(found) == {"one", "two", "ae"}
    one, two = found["one"]["hparams"], found["two"]["hparams"]
    assert {name for name in one if one[name] != two[name]} == {"lr", "seed"}
    assert (two["lr"], two["seed"], two["arch"], two["data"]) == (0.01, 3, "mlp", "synthetic")
    assert found["ae"]["hparams"]["latent_dim"] == 64
    columns = ask(address, "/data/plugin/hparams/experiment", method="POST", json={})
    tags = {info["name"]["tag"] for info in columns["metricInfos"]}
    assert {"test/accuracy", "test/psnr", "val/loss"} <= tags
    assert {"lr", "latent_dim"} <= {info["name"] for info in columns["hparamInfos"]}


def test_all_fields_of_the_recipe_and_the_final_metrics_are_in_the_one_file_of_events(
    cifarctl: Cifarctl, runs: Path
) -> None:
    (log,) = (runs / "two").rglob("*tfevents*")
    assert log.parent == runs / "two"
    events = EventAccumulator(str(log)).Reload()
    start = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(start).session_start_info.hparams
    recipe = cifarctl("train-clf", "--arch", "mlp", *RUN, "--lr", 0.01, "--print-recipe", "--json").json
    for name, value in recipe.items():
        stored = values[name].string_value if isinstance(value, str | list | dict) else values[name].number_value
        assert stored == (json.dumps(value) if isinstance(value, list | dict) else value), name
    assert {"arch", "data", "seed", "precision", "kind"} <= set(values)
    test = json.loads((runs / "two" / "summary.json").read_text())["test"]
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(test["accuracy"])
