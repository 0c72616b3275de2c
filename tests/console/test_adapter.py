"""The folders an export writes for adapted models: peft and transformers load them, and they compute what was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from anabranch.errors import Reason, Refused
from anabranch.terms import JobTerms, parse_job_file
from anabranch.wire.canonical import sha256
from console.adapter import Wanted, Written, write
from silo_agent.training import initial, tensors
from silo_agent.training.archive import pack
from silo_agent.training.building import build_model
from silo_agent.training.task import load_task

WORDS = torch.arange(12).view(2, 6)
SMALL = {"vocab_size": 50}
BERT = """
from transformers import AutoModelForSequenceClassification

class Task:
    def model(self, base):
        return AutoModelForSequenceClassification.from_pretrained(base)
    def dataset(self, data, split): ...
    def loss(self, model, batch): ...
"""
GPT2 = BERT.replace("AutoModelForSequenceClassification", "AutoModelForCausalLM")
PLAIN = """
import torch

class Task:
    def model(self):
        layers = [torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(48, 2)]
        return torch.nn.Sequential(*layers)
    def dataset(self, data, split): ...
    def loss(self, model, batch): ...
"""


@dataclass(frozen=True)
class Released:
    """A version as the server hands it out, and what the trained model answers."""

    path: Path
    terms: JobTerms
    code: Path
    base: Path | None
    answers: torch.Tensor


Release = Callable[..., Released]


def bert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, **SMALL
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=32, **SMALL)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def release(tmp_path: Path) -> Release:
    def release(adapter: str, task: str = BERT, base: Path | None = None, given: object = None) -> Released:
        code = tmp_path / "code"
        code.mkdir()
        (code / "task.py").write_text(task)
        bound = "" if base is None else 'base = "tiny"\n'
        file = parse_job_file(f'[job]\nname = "j"\ntask = "task.py:Task"\n{bound}[adapter]\n{adapter}')
        (tmp_path / "out").mkdir()
        path = tmp_path / "out" / "model.safetensors"
        made = initial.build(code, file, path, base)
        model = build_model(load_task(code, "task.py:Task", {}), file, base)
        torch.manual_seed(7)
        with torch.no_grad():  # as if it had been trained
            for one in tensors.travelling(model, "average").values():
                one.add_(0.1 * torch.rand_like(one))
        tensors.save_values(model, path, made.manifest)
        terms = JobTerms(
            file=file,
            archive_sha256=sha256(pack(code)),
            initial_sha256="0" * 64,
            manifest_sha256=made.manifest.digest(),
            base_sha256=made.base_sha256,
        )
        return Released(path, terms, code, base, answered(model, given))

    return release


def answered(model: torch.nn.Module, given: object = None) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(input_ids=WORDS).logits if given is None else model.eval()(given)
    assert isinstance(found, torch.Tensor)
    return found


LORA = 'rank = 4\ndropout = 0.1\nheads = ["classifier"]'


def test_the_adapter_folder_answers_as_the_trained_model(release: Release, tmp_path: Path) -> None:
    base = bert(tmp_path / "tiny")
    made = release(LORA, base=base)
    assert write(made.path, made.terms, Wanted()) == Written(made.path.with_name("model-adapter"))
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base), made.path.with_name("model-adapter")
    )
    assert torch.equal(answered(model), made.answers)
    assert not torch.equal(answered(AutoModelForSequenceClassification.from_pretrained(base)), made.answers)


def test_also_where_weights_lie_the_other_way_round(release: Release, tmp_path: Path) -> None:
    base = gpt2(tmp_path / "tiny")
    made = release("rank = 2", GPT2, base)
    written = write(made.path, made.terms, Wanted(made.code, base, merge=True))
    assert written.adapter is not None
    assert written.merged is not None
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), written.adapter)
    assert torch.equal(answered(model), made.answers)
    merged = AutoModelForCausalLM.from_pretrained(written.merged)
    torch.testing.assert_close(answered(merged), made.answers)


@pytest.mark.parametrize(
    "adapter", [LORA, LORA + "\nfreeze_a = true", 'kind = "head"\nheads = ["classifier"]']
)
def test_the_merged_checkpoint_needs_neither_peft_nor_base(
    release: Release, tmp_path: Path, adapter: str
) -> None:
    base = bert(tmp_path / "tiny")
    made = release(adapter, base=base)
    written = write(made.path, made.terms, Wanted(made.code, base, merge=True))
    assert written.merged == made.path.with_name("model-merged")
    assert list(written.merged.glob("*.safetensors"))
    merged = AutoModelForSequenceClassification.from_pretrained(written.merged)
    torch.testing.assert_close(answered(merged), made.answers)


def test_a_frozen_a_is_made_again(release: Release, tmp_path: Path) -> None:
    base = bert(tmp_path / "tiny")
    made = release(LORA + "\nfreeze_a = true", base=base)
    assert write(made.path, made.terms, Wanted()) == Written()
    folder = write(made.path, made.terms, Wanted(made.code, base)).adapter
    assert folder is not None
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), folder)
    assert torch.equal(answered(model), made.answers)
    with pytest.raises(Refused, match="model-adapter is there already"):
        write(made.path, made.terms, Wanted(made.code, base))


def test_a_model_that_is_not_transformers(release: Release) -> None:
    """With a convolution, and buffers that travel."""
    pictures = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    made = release('targets = ["0"]\nheads = ["3"]', PLAIN, given=pictures)
    written = write(made.path, made.terms, Wanted(made.code, merge=True))
    model = build_model(
        load_task(made.code, "task.py:Task", {}), made.terms.file.model_copy(update={"adapter": None})
    )
    assert written.adapter is not None
    assert written.merged is not None
    merged = load_file(written.merged / "model.safetensors")
    torch.testing.assert_close(
        answered(PeftModel.from_pretrained(model, written.adapter), pictures), made.answers
    )
    plain = build_model(
        load_task(made.code, "task.py:Task", {}), made.terms.file.model_copy(update={"adapter": None})
    )
    plain.load_state_dict(merged)
    torch.testing.assert_close(answered(plain, pictures), made.answers)


def test_what_is_given_has_to_be_what_the_job_is_made_of(release: Release, tmp_path: Path) -> None:
    base = bert(tmp_path / "tiny")
    made = release(LORA, base=base)
    with pytest.raises(Refused, match="--merge makes the job's model again: add --code") as found:
        Wanted(merge=True)
    assert found.value.code is Reason.MALFORMED
    with pytest.raises(Refused, match="add --base PATH"):
        Wanted(made.code, merge=True).check(made.terms)
    Wanted(made.code, base, merge=True).check(made.terms)
    (made.code / "task.py").write_text(BERT + "\n")
    with pytest.raises(Refused, match="give the very folder that was submitted") as found:
        Wanted(made.code, base, merge=True).check(made.terms)
    assert found.value.code is Reason.CODE_DIGEST_MISMATCH


def test_another_base_is_not_merged(release: Release, tmp_path: Path) -> None:
    made = release(LORA, base=bert(tmp_path / "tiny"))
    torch.manual_seed(1)
    other = tmp_path / "other"
    BertForSequenceClassification(BertConfig.from_pretrained(tmp_path / "tiny")).save_pretrained(other)
    with pytest.raises(Refused, match=f"model folder {other}") as found:
        write(made.path, made.terms, Wanted(made.code, other, merge=True))
    assert found.value.code is Reason.TASK_FAILED
    assert "Traceback" not in str(found.value)
    assert not made.path.with_name("model-merged").exists()
