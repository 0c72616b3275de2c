"""Adapters of the job file on tiny models with random weights: what trains, what travels, and what has to be the same."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from anabranch.errors import Refused
from anabranch.terms import parse_job_file
from anabranch.wire.tensors import read_tensors
from silo_agent.training.adapters import base_digest, check_base
from silo_agent.training.building import build_model
from silo_agent.training.managed import Managed
from silo_agent.training.task import Garbage, SiloData, load_task

TASK = """
import torch
from transformers import AutoModelForSequenceClassification

class Task:
    def model(self, base):
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    def dataset(self, data, split):
        words = torch.randint(0, 50, (24, 6), generator=torch.Generator().manual_seed(1))
        return torch.utils.data.TensorDataset(words, words[:, 0] % 3)
    def loss(self, model, batch):
        words, labels = batch
        return model(input_ids=words, labels=labels).loss
    def evaluate(self, model, batches):
        pairs = [(model(input_ids=x).logits.argmax(1), y) for x, y in batches]
        return {"accuracy": sum((p == y).sum() for p, y in pairs) / sum(len(y) for _, y in pairs)}
"""
LANGUAGE = """
import torch
from transformers import AutoModelForCausalLM

class Task:
    def model(self, base):
        return AutoModelForCausalLM.from_pretrained(base)
    def dataset(self, data, split):
        words = torch.randint(0, 50, (24, 6), generator=torch.Generator().manual_seed(1))
        return torch.utils.data.TensorDataset(words)
    def loss(self, model, batch):
        return model(input_ids=batch[0], labels=batch[0]).loss
"""
JOB = """
[job]
name = "t"
task = "task.py:Task"
base = "tiny"
seed = 5
[training]
batch_size = 8
optimizer = { name = "adam", lr = 0.01 }
[adapter]
"""
LORA = 'kind = "lora"\nrank = 4\nheads = ["classifier"]'


def quiet(_: Any) -> None:
    """Nobody wants to know about progress."""


def bert(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=32,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("base"))


@pytest.fixture
def make(tools: Any, base: Path, tmp_path: Path) -> Callable[..., Any]:
    count = iter(range(100))

    def make(adapter: str = LORA, task: str = TASK, model: Path = base) -> Any:
        folder = tmp_path / f"job{next(count)}"
        code = folder / "code"
        code.mkdir(parents=True)
        (code / "task.py").write_text(textwrap.dedent(task))
        (code / "job.toml").write_text(JOB + adapter)
        job = tools.make_job(folder, code, model)
        (folder / "work").mkdir()
        return job

    return make


def managed(job: Any, base: Path) -> Managed:
    task = load_task(job.folder / "archive", job.file.job.task, {})
    return Managed(task, job.file, SiloData(Path("/dev/null"), {}), job.folder / "work", base)


def names(room: Managed) -> set[str]:
    return {spec.name for spec in room.manifest.specs}


def frozen(room: Managed) -> dict[str, torch.Tensor]:
    return {
        name: one.detach().clone() for name, one in room.model.named_parameters() if not one.requires_grad
    }


def layers(what: str, *projections: str) -> set[str]:
    at = "base_model.model.bert.encoder.layer.{}.attention.self.{}.lora_{}.default.weight"
    return {at.format(layer, one, half) for layer in (0, 1) for one in projections for half in what}


HEAD = {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}


def test_lora_trains_and_only_adapters_and_head_travel(make: Any, base: Path) -> None:
    job = make()
    room = managed(job, base)
    assert names(room) == layers("AB", "query", "value") | HEAD
    before = frozen(room)
    trained = room.train(job.train("one", 6), quiet)
    assert trained is not None
    update = read_tensors(job.folder / "work" / "one.safetensors", room.manifest)
    assert all(np.any(values != 0) for values in update.values())
    after = frozen(room)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert room.evaluate(job.evaluate("two"), quiet)["num_examples"] == 24


def test_version_0_is_the_same_wherever_it_is_made(make: Any, base: Path) -> None:
    """A is drawn under the job's seed, B is zero: what is wrapped computes what the base computes."""
    one, two = make(), make()
    assert one.base.read_bytes() == two.base.read_bytes()
    assert one.terms.base_sha256 == two.terms.base_sha256 is not None
    room = managed(one, base)
    values = read_tensors(one.base, room.manifest)
    assert all(np.any(values[name] != 0) for name in layers("A", "query", "value"))
    assert not any(np.any(values[name] != 0) for name in layers("B", "query", "value"))
    words = torch.arange(12).view(2, 6)
    plain = BertForSequenceClassification.from_pretrained(base).eval()
    with torch.no_grad():
        assert torch.equal(room.model.eval()(input_ids=words).logits, plain(input_ids=words).logits)


def test_dropout_is_the_seeds(make: Any, base: Path) -> None:
    jobs = [make(LORA + "\ndropout = 0.5"), make(LORA + "\ndropout = 0.5"), make(LORA)]
    for job in jobs:
        managed(job, base).train(job.train("one", 3), quiet)
    assert jobs[0].update("one") == jobs[1].update("one") != jobs[2].update("one")


def test_a_killed_cycle_resumes_to_the_same_bytes(make: Any, base: Path) -> None:
    whole, parts = make(LORA + "\ndropout = 0.1"), make(LORA + "\ndropout = 0.1")
    managed(whole, base).train(whole.train("one", 5), quiet)
    steps = iter([False, False, False, True])
    assert managed(parts, base).train(parts.train("one", 5), quiet, lambda: next(steps)) is None
    managed(parts, base).train(parts.train("one", 5), quiet)
    assert parts.update("one") == whole.update("one")


def test_heads_alone(make: Any, base: Path) -> None:
    job = make('kind = "head"\nheads = ["classifier"]')
    room = managed(job, base)
    assert names(room) == {"classifier.weight", "classifier.bias"}
    before = frozen(room)
    room.train(job.train("one"), quiet)
    assert all(torch.equal(values, before[name]) for name, values in frozen(room).items())


def test_full_starts_from_the_base_and_all_of_it_travels(make: Any, base: Path) -> None:
    job = make('kind = "full"')
    room = managed(job, base)
    assert job.terms.base_sha256 is None
    values = read_tensors(job.base, room.manifest)
    original = BertForSequenceClassification.from_pretrained(base)
    for name, one in original.named_parameters():
        assert np.array_equal(values[name], one.detach().numpy())


def test_ffa_freezes_a_as_it_was_drawn(make: Any, base: Path) -> None:
    job = make(LORA + "\nfreeze_a = true")
    room = managed(job, base)
    assert names(room) == layers("B", "query", "value") | HEAD
    before = frozen(room)
    assert layers("A", "query", "value") <= before.keys()
    room.train(job.train("one"), quiet)
    assert all(torch.equal(values, before[name]) for name, values in frozen(room).items())
    drawn = read_tensors(make().base, managed(make(), base).manifest)
    assert all(np.array_equal(before[name], drawn[name]) for name in layers("A", "query", "value"))


def test_a_frozen_a_of_another_seed_is_another_base(make: Any, base: Path) -> None:
    job = make(LORA + "\nfreeze_a = true")
    other = job.file.model_copy(update={"job": job.file.job.model_copy(update={"seed": 6})})
    task = load_task(job.folder / "archive", "task.py:Task", {})
    assert base_digest(build_model(task, other, base), "average") != job.terms.base_sha256


def test_peft_chooses_targets_for_an_architecture_it_knows(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    job = make("rank = 2", LANGUAGE, tmp_path / "gpt2")
    room = managed(job, tmp_path / "gpt2")
    at = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.default.weight"
    assert names(room) == {at.format(layer, half) for layer in (0, 1) for half in "AB"}
    assert room.train(job.train("one", 2), quiet) is not None


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [
        ('targets = ["nope"]', "NoSuchTarget"),
        ('heads = ["nope"]', "NoSuchHead"),
        ('kind = "head"\nheads = ["classifer"]', "NoSuchHead"),
    ],
)
def test_a_module_that_is_not_there_is_named_with_those_that_are(make: Any, adapter: str, kind: str) -> None:
    with pytest.raises(Garbage, match=r"its modules are called .*classifier") as found:
        make(adapter)
    assert found.value.kind == kind


def test_a_job_with_a_base_needs_its_folder(make: Any, base: Path) -> None:
    job = make()
    with pytest.raises(Garbage, match="give its folder with --base PATH"):
        build_model(load_task(job.folder / "archive", "task.py:Task", {}), job.file)


def test_another_base_is_refused_with_what_to_do(make: Any, base: Path, tmp_path: Path) -> None:
    job, other = make(), bert(tmp_path / "other", seed=1)
    found = managed(job, other).base_sha256
    assert managed(job, base).base_sha256 == job.terms.base_sha256 != found
    with pytest.raises(Garbage, match="put the very files there") as refused:
        check_base(found, job.terms.base_sha256, other)
    assert refused.value.kind == "OtherBase"
    for part in (str(other), found, job.terms.base_sha256):
        assert str(part) in str(refused.value)


def test_every_frozen_bit_counts_and_nothing_that_trains(make: Any, base: Path) -> None:
    job = make()
    room = managed(job, base)
    known = room.base_sha256
    before = next(iter(frozen(room)))
    parameters = dict(room.model.named_parameters())
    with torch.no_grad():
        for name in names(room):
            parameters[name].add_(1.0)
        assert base_digest(room.model, "average") == known
        parameters[before].view(torch.int32).view(-1)[-1] ^= 1
        assert base_digest(room.model, "average") != known
        parameters[before].view(torch.int32).view(-1)[-1] ^= 1
        assert base_digest(room.model, "average") == known
        head = "base_model.model.classifier.original_module.weight"
        parameters[head].add_(1.0)  # nothing reads it
        assert base_digest(room.model, "average") == known


def test_the_digest_is_of_names_types_shapes_and_bytes() -> None:
    """Worked out by hand for one frozen layer, in half precision, and a counter that never travels."""
    import hashlib

    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.BatchNorm1d(1))
    model[0].to(torch.bfloat16).requires_grad_(False)
    weight = model[0].weight.detach().view(torch.int16).numpy().tobytes()
    count = b'["1.num_batches_tracked", "int64", []]\n' + bytes(8)
    expected = b'["0.weight", "bfloat16", [1, 2]]\n' + weight + count
    assert base_digest(model, "average") == hashlib.sha256(expected).hexdigest()
    local = base_digest(model, "local")  # what stays at a silo counts as it was made
    assert local != base_digest(model, "average")
    assert base_digest(torch.nn.BatchNorm1d(1), "average") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[job]\nname = "j"\ntask = "train.py"\n[adapter]\n', "adapter: train.py has a loop of its own"),
        ('[job]\nname = "j"\ntask = "train.py"\nbase = "b"', "job.base: train.py has a loop of its own"),
        ('[job]\nname = "j"\ntask = "t.py:T"\n[adapter]\nkind = "head"', "name them"),
        ('[job]\nname = "j"\ntask = "t.py:T"\n[adapter]\nkind = "full"\nrank = 4', "rank is a key of lora"),
        ('[job]\nname = "j"\ntask = "t.py:T"\n[adapter]\nkind = "full"\nheads = ["a"]', "heads is a key of"),
        ('[job]\nname = "j"\ntask = "t.py:T"\n[adapter]\ntargets = ["a;b"]', "adapter.targets"),
    ],
)
def test_job_files_that_do_not_fit(text: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        parse_job_file(text)


def test_lora_needs_peft_at_the_silo() -> None:
    job = '[job]\nname = "j"\ntask = "t.py:T"\nrequires = ["numpy"]\n'
    assert parse_job_file(job).requires == ("numpy",)
    assert parse_job_file(job + "[adapter]\n").requires == ("numpy", "peft")
