"""Checkpoints of unsplit models: loaded in parts, mapped, within a limit of memory, and saved."""

import dataclasses
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import lamella
import lamella.torch
import memory_rank
from lamella.torch.checkpoint import Files
from model_ranks import CONFIGS, VOCAB, close, run_ranks, seed, split, unsplit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def empty(name):
    """A model without data, buffers included."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def logits(model, ids):
    with torch.no_grad():
        result = model(ids)
    return getattr(result, "logits", result)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> (model, ids, its logits, folder): as save_pretrained writes it, in several files."""
    found = {}
    for name in ("llama", "llama_biases", "gpt2_eager"):
        folder, model = tmp_path_factory.mktemp(name), unsplit(name)
        model.save_pretrained(folder, max_shard_size="30KB")
        ids = torch.randint(3, VOCAB, (2, 7))
        found[name] = model, ids, logits(model, ids), folder
    return found


@pytest.mark.parametrize("tp, pp", [(1, 1), (3, 1), (4, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("name", ["llama", "llama_biases", "gpt2_eager"])
def test_a_model_without_data_loads_and_saves_in_parts(saved, tmp_path, name, tp, pp):
    model, ids, expected, folder = saved[name]
    assert len(list(folder.glob("*.safetensors"))) > 1

    def rank(group):
        mine = split(empty(name), group, tp=tp, pp=pp)
        assert lamella.torch.load(mine, folder) == []
        assert not any(t.is_meta for t in [*mine.parameters(), *mine.buffers()])
        lamella.torch.save(mine, tmp_path)
        return logits(mine, ids)

    for found in run_ranks(tp * pp, rank):
        assert found is not None or pp > 1
        if found is not None:
            close(found, expected)
    files, state = Files(tmp_path), model.state_dict()
    tied = {"lm_head.weight"} if name != "llama_biases" else set()
    assert set(state) - set(files.names()) == tied
    assert all(torch.equal(files.read(n, 0, 0, len(state[n])), state[n]) for n in files.names())
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) == pp


def test_a_model_with_data_loads_another_one_in_place():
    model, other = unsplit("llama"), unsplit("llama")
    state = {("x." + name): t for name, t in other.state_dict().items()}
    state["x.more"] = torch.zeros(3)
    ids = torch.randint(3, VOCAB, (2, 7))
    expected = logits(other, ids)

    def rank(group):
        mine = split(model, group)
        weight = mine.model.layers[0].mlp.w1
        assert lamella.torch.load(mine, state, rename=lambda name: "x." + name) == ["x.more"]
        assert mine.model.layers[0].mlp.w1 is weight
        return logits(mine, ids)

    for found in run_ranks(2, rank):
        close(found, expected)


def test_what_a_checkpoint_lacks_or_has_in_another_shape_is_named():
    model = unsplit("llama_biases")
    state = dict(model.state_dict())
    del state["model.layers.1.mlp.up_proj.bias"]
    state["lm_head.weight"] = torch.zeros(VOCAB + 1, 36)

    def rank(group):
        with pytest.raises(lamella.Error) as caught:
            lamella.torch.load(split(model, group), state)
        return str(caught.value)

    for text in run_ranks(2, rank):
        assert "model.layers.1.mlp.up_proj.bias is missing" in text
        assert "lm_head.weight is [98, 36] there, [97, 36] in the model" in text
        assert len(text.splitlines()) == 3


def test_a_buffer_that_nothing_can_make_is_named():
    row = lamella.torch.families.FAMILIES["LlamaForCausalLM"]
    family = dataclasses.replace(row, rebuild={})
    state = unsplit("llama").state_dict()

    def rank(group):
        with pytest.raises(lamella.Error, match="model.rotary_emb.inv_freq is a buffer without"):
            lamella.torch.load(split(empty("llama"), group, family=family), state)

    run_ranks(2, rank)


@pytest.mark.parametrize("tp, pp", [(2, 1), (1, 2), (2, 2)])
def test_a_saved_model_is_there_for_the_first_rank_that_returns(tmp_path, monkeypatch, tp, pp):
    """Over an older one of more parts, and though a file takes as long as it may."""
    model, other, looked = unsplit("llama"), unsplit("llama"), threading.Event()

    def older(group):
        lamella.torch.save(split(other, group, tp=1, pp=3), tmp_path)

    run_ranks(3, older)
    write = safetensors.torch.save_file

    def write_late(*arguments, **more):
        looked.wait(0.3)  # returns at once where a rank came back too early
        write(*arguments, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", write_late)

    def rank(group):
        lamella.torch.save(split(model, group, tp=tp, pp=pp), tmp_path)
        files, state = Files(tmp_path), model.state_dict()
        looked.set()
        assert set(state) - set(files.names()) <= {"lm_head.weight"}
        for name in files.names():
            assert torch.equal(files.read(name, 0, 0, len(state[name])), state[name])

    run_ranks(tp * pp, rank)
    assert not list(tmp_path.glob("*.new"))


def test_a_folder_without_a_checkpoint_and_an_unsplit_model_are_refused(tmp_path):
    model = unsplit("llama")
    with pytest.raises(lamella.Error, match="LlamaForCausalLM was not made by parallelize"):
        lamella.torch.load(model, {})
    with pytest.raises(lamella.Error, match="no safetensors file in"):
        lamella.torch.load(lamella.torch.parallelize(model, lamella.torch.Plan()), tmp_path)


# -- memory --


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 124 MB, its largest tensor 8 MB, in two files."""
    seed()
    folder = tmp_path_factory.mktemp("large")
    parameters = list(memory_rank.empty().named_parameters())
    weight_map = {}
    for i, part in enumerate((parameters[:40], parameters[40:])):
        file = "model-%d.safetensors" % i
        save_file({name: torch.rand(p.shape) for name, p in part}, str(folder / file))
        weight_map.update((name, file) for name, _ in part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_each_rank_needs_memory_for_its_part_and_one_tensor(large):
    command = [str(ROOT / "lamella"), "run", "-n", "4", sys.executable, "-B"]
    done = subprocess.run(
        [*command, str(HERE / "memory_rank.py"), str(large), "2", "2"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = re.findall(r"split: ok, (\d+) bytes held, largest (\d+), whole (\d+)", done.stdout)
    assert len(said) == 4 and done.stdout.count("whole: no memory") == 4, done.stdout + done.stderr
    for held, largest, whole in said:
        assert int(held) + int(largest) < 0.4 * int(whole)
