"""Asking through the harness: the same questions, answers and figures as the harness's own."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.dummy import DummyLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from bos_tokenizers import BOS, EOS, make_tokenizer
from evaluation import tiny_items
from inheritune import UserError
from inheritune.evaluation import harness
from inheritune.evaluation.harness import Scorer, ask
from inheritune.evaluation.statistics import TaskItems
from inheritune.evaluation.tasks import GROUPS, Unit, local_tasks, make_plan
from tiny_models import ARCHITECTURES, shaken, tiny_model

FEW = ("arc_easy", "hellaswag", "lambada_openai", "sciq", "wikitext", "winogrande", "wsc273")
WRITTEN = tuple(task for task, _ in GROUPS["generation"].columns)
SCORED = tuple(name for name in local_tasks() if name not in (*WRITTEN, "mmlu"))
MMLU = tuple(f"mmlu_{subject}" for subject in tiny_items.SUBJECTS)


class Forgetful(GPT2LMHeadModel):
    """A model that always gives the logits of all positions."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        return super().forward(input_ids)


@dataclass(frozen=True)
class Theirs:
    """What the harness finds by itself."""

    prompts: list[Any]
    responses: list[Any]
    metrics: dict[str, float]
    """By our names."""
    samples: dict[str, list[Any]]
    shots: int


@dataclass(frozen=True)
class Ours:
    prompts: list[Any]
    found: TaskItems


@pytest.fixture(scope="module", autouse=True)
def hub() -> Any:
    """The harness's data sets are those of the hub, made here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.load_dataset", tiny_items.load_dataset)
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # which asks programs, for seconds
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_items.write_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tiny_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "made")


@pytest.fixture(scope="module")
def gpt2(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny_items.make_model(tokenizer)


@pytest.fixture(scope="module")
def llama(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """With grouped-query attention, and a context that is too short for some of the requests."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 13,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def forgetful(gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny_items.make_model(tokenizer, kind=Forgetful)


def ask_theirs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: tuple[str, ...],
    shots: int | None = None,
) -> dict[str, Theirs]:
    """The harness's own tasks, model class and command."""
    folders = sorted({local_tasks()["mmlu" if n.startswith("mmlu") else n].home for n in names})
    manager = TaskManager(include_defaults=False, include_path=folders)
    results = evaluator.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5),
        tasks=list(names),
        num_fewshot=shots,
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert results is not None
    found = {}
    for name in names:
        samples = results["samples"][name]
        metrics = [metric for metric in results["results"][name] if metric.endswith(",none")]
        figures = {metric.removesuffix(",none"): results["results"][name][metric] for metric in metrics}
        figures = {metric: value for metric, value in figures.items() if not metric.endswith("_stderr")}
        found[name] = Theirs(
            [sample["arguments"] for sample in samples],
            [sample["filtered_resps"] for sample in samples],
            figures,
            {metric: [sample[metric] for sample in samples] for metric in figures},
            results["n-shot"][name],
        )
    return found


def ask_ours(scorer: Any, name: str, folder: Path | None, shots: int | None = None) -> Ours:
    (unit,) = make_plan([name], folder, shots=shots).units
    found = ask(scorer, unit, {})
    return Ours(prompts(unit), found)


def prompts(unit: Unit) -> list[Any]:
    """Of every item the requests, as the tasks made them."""
    grouped: dict[tuple[str, int], list[Any]] = {}
    for task in unit.tasks:
        for instance in task.instances:
            grouped.setdefault((task.task_name, instance.doc_id), []).append(instance.args)
    return list(grouped.values())


def numbers(nested: Any) -> list[float]:
    """Log-likelihoods and greedy flags in their order."""
    if isinstance(nested, (list, tuple)):
        return [number for part in nested for number in numbers(part)]
    return [float(nested)]


def check_same(ours: Ours, theirs: Theirs) -> None:
    assert ours.prompts == theirs.prompts
    assert len(ours.found.hashes) == len(ours.found.responses) == len(theirs.responses)
    assert len(set(ours.found.hashes)) == len(theirs.responses), "items differ, and so do their hashes"
    assert ours.found.shots == theirs.shots
    assert flags(ours.found.responses) == flags(theirs.responses)
    assert numbers(ours.found.responses) == pytest.approx(numbers(theirs.responses), rel=1e-5, abs=1e-5)
    assert list(ours.found.metrics) == list(theirs.metrics)
    for name, metric in ours.found.metrics.items():
        assert metric.value == pytest.approx(theirs.metrics[name], rel=1e-6, abs=1e-6)
        if metric.items is not None:
            assert numbers(metric.items) == pytest.approx(numbers(theirs.samples[name]), rel=1e-5, abs=1e-5)


def flags(nested: Any) -> list[bool]:
    if isinstance(nested, (list, tuple)):
        return [flag for part in nested for flag in flags(part)]
    return [nested] if isinstance(nested, bool) else []


@pytest.fixture(scope="module")
def theirs(gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Theirs]:
    return {**ask_theirs(gpt2, tokenizer, SCORED), **ask_theirs(gpt2, tokenizer, MMLU, 5)}


@pytest.mark.parametrize("name", SCORED)
def test_items_from_a_folder_are_asked_as_the_harness_asks_those_of_the_hub(
    name: str,
    theirs: dict[str, Theirs],
    folder: Path,
    gpt2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ours = ask_ours(Scorer(gpt2, tokenizer, 4, "gpt2"), name, folder)
    assert len(ours.found.hashes) == 6
    assert ours.found.truncated == 0
    check_same(ours, theirs[name])


def test_the_model_is_sometimes_right_and_sometimes_greedy(theirs: dict[str, Theirs]) -> None:
    found = [flag for one in theirs.values() for flag in flags(one.responses)]
    assert 0 < sum(found) < len(found)
    assert 0 < theirs["lambada_openai"].metrics["acc"] < 1
    assert len({round(one.metrics["acc"], 6) for one in theirs.values() if "acc" in one.metrics}) > 3


def test_mmlu_pools_the_items_of_its_subjects(
    theirs: dict[str, Theirs],
    folder: Path,
    gpt2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {name: name.removeprefix("mmlu_") for name in MMLU}
    monkeypatch.setattr("inheritune.evaluation.tasks._subjects", lambda manager, name: few)
    ours = ask_ours(Scorer(gpt2, tokenizer, 7, "gpt2"), "mmlu", folder)
    parts = [theirs[name] for name in MMLU]
    pooled = [value for part in parts for value in part.samples["acc"]]
    check_same(
        ours,
        Theirs(
            [prompt for part in parts for prompt in part.prompts],
            [response for part in parts for response in part.responses],
            {"acc": sum(pooled) / len(pooled)},
            {"acc": pooled},
            5,
        ),
    )
    assert ours.found.parts == list(MMLU)
    assert ours.prompts[0][0][0].count("\nAnswer:") == 6, "five worked examples before the item"


def test_mmlu_is_the_same_from_the_hub_and_from_a_folder_with_all_its_subjects(
    folder: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    scorer = Scorer(gpt2, tokenizer, 16, "gpt2")
    local, hub = (ask_ours(scorer, "mmlu", data) for data in (folder, None))
    assert len(hub.found.parts) == 57
    assert len(hub.found.hashes) == 6 * 3 + 54
    order = [hub.found.hashes.index(hash) for hash in local.found.hashes]
    assert sorted(order) == list(range(len(order))), "the same items, whatever the order of the subjects"
    reordered = [hub.found.responses[place] for place in order]
    assert numbers(local.found.responses) == pytest.approx(numbers(reordered), rel=1e-5)
    assert local.found.metrics["acc"].value == pytest.approx(hub.found.metrics["acc"].value)
    assert local.found.shots == hub.found.shots == 5


@pytest.mark.parametrize("shots", [0, 2])
def test_a_llama_with_a_short_context_and_worked_examples(
    shots: int, folder: Path, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    theirs = ask_theirs(llama, tokenizer, FEW, shots)
    for name in FEW:
        scorer = Scorer(llama, tokenizer, 4, "llama")
        ours = ask_ours(scorer, name, folder, shots)
        check_same(ours, theirs[name])
        pairs = [pair for item in ours.prompts for pair in item if len(pair) == 2]
        assert ours.found.truncated == sum(len(tokenizer.encode("".join(pair))) > 65 for pair in pairs)
        assert ours.found.requests == sum(len(item) for item in ours.prompts)
    assert scorer.truncated > 0 or shots == 0


def test_a_model_that_cannot_leave_out_logits_answers_the_same(
    folder: Path, gpt2: PreTrainedModel, forgetful: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    fast, slow = Scorer(gpt2, tokenizer, 4, "fast"), Scorer(forgetful, tokenizer, 4, "slow")
    assert (fast.can_share, slow.can_share) == (True, False)
    assert "logits_to_keep" not in slow.options
    for name in (*FEW, "boolq", "truthfulqa_mc2"):
        check_answers(ask_ours(slow, name, folder).found, ask_ours(fast, name, folder).found)


def test_logits_are_computed_only_where_they_are_read(
    folder: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    seen: list[tuple[int, int]] = []

    def record(module: Any, positional: Any, named: dict[str, Any], output: Any) -> None:
        seen.append((positional[0].shape[1], output.logits.shape[1]))

    handle = gpt2.register_forward_hook(record, with_kwargs=True)
    try:
        ask_ours(Scorer(gpt2, tokenizer, 1, "gpt2"), "boolq", folder)
    finally:
        handle.remove()
    assert len(seen) == 6, "`no` and `yes` differ in their only token, and cost one row"
    assert {kept for _, kept in seen} == {1}
    assert min(length for length, _ in seen) > 10


@pytest.mark.parametrize("name", FEW)
def test_the_size_of_batches_changes_nothing(
    name: str,
    folder: Path,
    gpt2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = ask_ours(Scorer(gpt2, tokenizer, 1, "gpt2"), name, folder).found
    for size in (3, 32, None):
        check_answers(ask_ours(Scorer(gpt2, tokenizer, size, "gpt2"), name, folder).found, alone)
    monkeypatch.setattr(harness, "LOGIT_BYTES", 20 * 4 * len(tokenizer))
    check_answers(ask_ours(Scorer(gpt2, tokenizer, 32, "gpt2"), name, folder).found, alone)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "mamba"])
def test_a_context_that_is_read_once_changes_no_answer(
    kind: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every architecture; contexts are longer than its window of attention, if it has one."""
    small = {"num_hidden_layers": 2} if kind == "mamba" else {}
    model = shaken(tiny_model(kind, vocab_size=len(tokenizer), **small))
    rng = random.Random(2)
    asked = []
    for _ in range(9):
        context = tiny_items.sentence(rng, 1, 15)
        asked += [request(context, " " + tiny_items.phrase(rng, 1, 4)) for _ in range(rng.randint(1, 4))]
    scorer = Scorer(model, tokenizer, None, kind)
    assert scorer.can_share == (kind != "mamba")
    read: list[int] = []
    handle = model.register_forward_hook(lambda *given: read.append(given[1][0].numel()))
    try:
        together = scorer.loglikelihood(asked)
        shared = sum(read)
        read.clear()
        monkeypatch.setattr(scorer, "can_share", False)
        alone = scorer.loglikelihood(asked)
    finally:
        handle.remove()
    assert [one for _, one in together] == [one for _, one in alone]
    assert [one for one, _ in together] == pytest.approx([one for one, _ in alone], rel=1e-5, abs=1e-5)
    assert kind == "mamba" or shared < 0.8 * sum(read)


def test_log_likelihoods_of_a_model_in_bfloat16_are_summed_in_float32(
    gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A bfloat16 beyond 64 is a multiple of a half, so that answers of equal rank would be ties."""
    half = tiny_items.make_model(tokenizer).to(torch.bfloat16)
    asked = [request("The lamp", " ship and river" * 9)]
    ((found, _),) = Scorer(half, tokenizer, None, "half").loglikelihood(asked)
    tokens = tokenizer.encode("The lamp" + " ship and river" * 9)
    begin = len(tokenizer.encode("The lamp"))
    with torch.no_grad():
        logs = half(torch.tensor([tokens[:-1]])).logits[0].float().log_softmax(-1)
    expected = math.fsum(logs[i - 1, tokens[i]].item() for i in range(begin, len(tokens)))
    assert found < -64
    assert found == pytest.approx(expected, abs=0.02)


def test_the_bar_counts_requests_and_windows(
    folder: Path, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    scorer = Scorer(llama, tokenizer, 3, "llama")
    for name in ("hellaswag", "wikitext", "lambada_generate"):
        found = ask_ours(scorer, name, folder).found
        assert scorer.bar.done == scorer.bar.total
        assert scorer.bar.total == found.requests or name == "wikitext"
        assert scorer.bar.total is not None
        assert scorer.bar.total >= found.requests


def check_answers(found: TaskItems, expected: TaskItems) -> None:
    assert found.hashes == expected.hashes
    assert flags(found.responses) == flags(expected.responses)
    assert numbers(found.responses) == pytest.approx(numbers(expected.responses), rel=1e-5, abs=1e-5)


def request(context: str, answer: str) -> Instance:
    return Instance("loglikelihood", {}, (context, answer), 0)


def test_the_logits_of_a_batch_stay_within_their_limit(
    gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    asked = [request(tiny_items.sentence(rng, 1, 30), " " + tiny_items.phrase(rng, 1, 12)) for _ in range(30)]
    sizes: list[int] = []
    handle = gpt2.register_forward_hook(lambda *given: sizes.append(given[-1].logits.numel() * 4))
    try:
        unlimited = Scorer(gpt2, tokenizer, 8, "gpt2").loglikelihood(asked)
        assert len(sizes) == 4
        limit = max(sizes) // 3
        sizes.clear()
        monkeypatch.setattr(harness, "LOGIT_BYTES", limit)
        limited = Scorer(gpt2, tokenizer, 8, "gpt2").loglikelihood(asked)
    finally:
        handle.remove()
    assert len(sizes) > 4
    assert max(sizes) <= limit
    assert [one for one, _ in limited] == pytest.approx([one for one, _ in unlimited], rel=1e-5)


def test_answers_are_those_of_the_model_itself_in_the_order_of_the_questions(
    gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(1)
    asked = [(tiny_items.sentence(rng, 1, 30), " " + tiny_items.phrase(rng, 1, 12)) for _ in range(20)]
    asked += [(asked[0][0], answer) for answer in (" yes", " no", " yes", " lamp")] + [asked[3]]
    found = Scorer(gpt2, tokenizer, 6, "gpt2").loglikelihood([request(*pair) for pair in asked])
    for (context, answer), (likelihood, _) in zip(asked, found, strict=True):
        tokens, begin = tokenizer.encode(context + answer), len(tokenizer.encode(context))
        with torch.no_grad():
            logs = gpt2(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
        expected = math.fsum(logs[i - 1, tokens[i]].item() for i in range(begin, len(tokens)))
        assert likelihood == pytest.approx(expected, rel=1e-5)


def test_an_answer_longer_than_the_context_is_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    scorer = Scorer(llama, tokenizer, 4, "little")
    with pytest.raises(ValueError, match=r"an answer of \d+ tokens .* longer than the context of little, 64"):
        scorer.loglikelihood([request("Question", " yes"), request("Question", " 7" * 80)])


def test_what_does_not_fit_is_cut_from_the_left_and_counted(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    scorer = Scorer(llama, tokenizer, 4, "little")
    tokens = tokenizer.encode(" lamp" * 65)
    assert len(tokens) == 65
    answers = scorer.loglikelihood(
        [request(" ship" * before + " lamp" * 64, " river") for before in (0, 1, 2, 30)]
    )
    assert scorer.truncated == 3, "65 tokens are 64 that are read and one that is foretold"
    assert [one for one, _ in answers] == pytest.approx([answers[0][0]] * 4, rel=1e-5)


def test_word_perplexity_is_that_of_windows_rolled_by_hand(
    folder: Path, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Windows of the context's length, each of whose tokens is foretold once, the last window backing up."""
    ours = ask_ours(Scorer(llama, tokenizer, 3, "llama"), "wikitext", folder)
    total, words, longest = 0.0, 0, 0
    pages = tiny_items.hub_records("wikitext", "test")
    for record, ((text,),) in zip(pages, ours.prompts, strict=True):
        tokens = tokenizer.encode(text)
        longest = max(longest, len(tokens))
        line = [tokenizer.eos_token_id, *tokens]
        for begin in range(0, len(tokens), 64):
            end = min(begin + 64, len(tokens))
            first = 0 if begin == 0 else end - 64  # of the inputs
            with torch.no_grad():
                logs = llama(torch.tensor([line[first:end]])).logits[0].log_softmax(-1)
            total += sum(logs[i - first, line[i + 1]].item() for i in range(begin, end))
        words += len(record["page"].split()) + 2  # the nothing before and after it count too
    assert longest > 3 * 64
    found = ours.found.metrics
    assert found["word_perplexity"].value == pytest.approx(math.exp(-total / words), rel=1e-4)
    size = sum(len(record["page"].encode()) for record in pages)
    assert found["byte_perplexity"].value == pytest.approx(math.exp(-total / size), rel=1e-4)
    assert found["bits_per_byte"].value == pytest.approx(-total / size / math.log(2), rel=1e-4)
    assert ours.found.truncated == 0


class Guesser(DummyLM):
    """Answers at random, with the attributes of a `Scorer`."""

    device = None
    truncated, requests, title = 0, 0, ""


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "wsc273"])
def test_guessing_gives_chance(name: str, tmp_path: Path) -> None:
    count = 300
    folder = tiny_items.write_items(tmp_path, [name], splits=["test", "validation"], count=count)
    random.seed(11)
    (unit,) = make_plan([name], folder).units
    found = ask(Guesser(), unit, {})
    assert len(found.hashes) == count
    assert found.chance is not None
    error = found.metrics["acc"].score().standard_error
    assert error is not None
    assert 0.02 < error < 0.03
    assert abs(found.metrics["acc"].value - found.chance) < 3 * error


def test_chance_is_the_mean_over_items_of_one_in_so_many_choices(folder: Path) -> None:
    expected = {"arc_easy": 0.0, "hellaswag": 1 / 4, "mnli": 1 / 3, "truthfulqa_mc1": 0.0, "wsc273": 1 / 2}
    sizes = {
        "arc_easy": [len(r["choices"]["text"]) for r in tiny_items.hub_records("arc_easy", "test")],
        "truthfulqa_mc1": [
            len(r["mc1_targets"]["choices"]) for r in tiny_items.hub_records("truthfulqa_mc1", "validation")
        ],
    }
    assert all(len(set(counts)) > 1 for counts in sizes.values())
    expected |= {name: sum(1 / count for count in counts) / 6 for name, counts in sizes.items()}
    for name, chance in expected.items():
        assert ask_ours(Guesser(), name, folder).found.chance == pytest.approx(chance)


@pytest.mark.parametrize("name", ["lambada_openai", "wikitext", "truthfulqa_mc2"])
def test_there_is_no_chance_where_not_one_choice_is_right(name: str, folder: Path) -> None:
    assert ask_ours(Guesser(), name, folder).found.chance is None


def test_so_many_items_of_each_task(
    folder: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    (unit,) = make_plan(["boolq"], folder).units
    scorer = Scorer(gpt2, tokenizer, 4, "gpt2")
    everything, some = ask(scorer, unit, {}), ask(scorer, unit, {}, limit=2)
    assert some.hashes == everything.hashes[:2]
    assert (some.requests, everything.requests) == (4, 12)


def test_a_template_is_compiled_once_for_all_items(
    gpt2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    compiles = jinja2.Environment.compile

    def record(self: jinja2.Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(source)
        return compiles(self, source, *args, **kwargs)

    monkeypatch.setattr(jinja2.Environment, "compile", record)
    for name in ("sciq", "arc_easy"):
        (unit,) = make_plan([name], folder).units
        assert len(ask(Scorer(gpt2, tokenizer, None, "gpt2"), unit, {}).hashes) > 2
    assert len(compiled) == len(set(compiled))


def test_asking_twice_gives_the_same_and_leaves_torchs_random_state(
    folder: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    (unit,) = make_plan(["hellaswag"], folder, shots=2).units
    scorer = Scorer(gpt2, tokenizer, 4, "gpt2")
    before = torch.random.get_rng_state()
    first, second = (ask(scorer, unit, {"of": "this"}) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.key == {"of": "this"}


@pytest.mark.parametrize("name", ["boolq", "lambada_openai", "wikitext"])
def test_a_model_whose_answers_are_no_numbers_is_refused(
    name: str, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_items.make_model(tokenizer)
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=f"{name}.* not finite"):
        ask_ours(Scorer(model, tokenizer, 4, "broken"), name, folder)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_what_the_harness_has_it_write(
    name: str, folder: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    theirs = ask_theirs(gpt2, tokenizer, (name,))[name]
    ours = ask_ours(Scorer(gpt2, tokenizer, 5, "gpt2"), name, folder)
    assert ours.found.shots == theirs.shots == (5 if name == "gsm8k" else 0)
    filters = 2 if name == "gsm8k" else 1
    items = len(theirs.prompts) // filters
    assert ours.prompts == theirs.prompts[:items]
    assert ours.found.responses == theirs.responses[:items]
    assert len(ours.found.metrics) == filters
    assert {metric for task, metric in GROUPS["generation"].columns if task == name} <= set(
        ours.found.metrics
    )


class Writer(DummyLM):
    """Writes what it is given, of items in their order."""

    device = None
    truncated, requests, title = 0, 0, ""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self.texts


def test_lambada_by_generation_is_right_where_the_first_word_is(tmp_path: Path) -> None:
    passages = ['It was the "lamp', "He saw don't", "They built the mill", "She sold the ship", "I hid a fox"]
    tiny_items.write_lines(tmp_path / "lambada_openai/test.jsonl", [{"text": text} for text in passages])
    written = [' lamp," he said', " don't know", " mills and", "", ' "Fox"']
    ours = ask_ours(Writer(written), "lambada_generate", tmp_path)
    assert ours.found.metrics["exact_match"].items == [1, 1, 0, 0, 0]
    assert ours.found.chance is None
    ((context, options),) = ours.prompts[1]
    assert context == "He saw"
    assert (options["do_sample"], " " in options["until"]) == (False, False)


def test_a_task_that_lets_the_model_write_and_reads_it_in_two_ways(
    gpt2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"text": "lamp", "label": "lamp"}, {"text": "ship and river", "label": "river"}]
    monkeypatch.setattr(
        "datasets.load_dataset", lambda **_: {"test": tiny_items.datasets.Dataset.from_list(rows)}
    )
    path = tmp_path / "written.yaml"
    path.write_text(
        """
task: written
dataset_path: anywhere
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{label}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: any, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
    )
    (unit,) = make_plan([str(path)]).units
    found = ask(Scorer(gpt2, tokenizer, 2, "gpt2"), unit, {})
    assert list(found.metrics) == ["exact_match,strict", "exact_match,any"]
    assert [len(metric.items or []) for metric in found.metrics.values()] == [2, 2]
    assert len(found.hashes) == 2
    written = []
    for row in rows:
        inputs = torch.tensor([tokenizer.encode(row["text"])])
        output = gpt2.generate(inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
        written.append(tokenizer.decode(output[0, inputs.shape[1] :]).split("\n")[0])
    assert found.responses == [[text] for text in written]


def test_requests_begin_as_the_tokenizer_has_it(llama: PreTrainedModel) -> None:
    """Beginning-of-text is left to the tokenizer, in the harness's way and in ours."""
    for template, front, behind in (
        ("<bos> $A", [BOS], []),
        (None, [], []),
        ("<bos> $A <eos>", [BOS], [EOS]),
    ):
        made = make_tokenizer(template)
        words = make_tokenizer(None)("the window").input_ids
        scorer = Scorer(llama, made, 2, "model")
        assert scorer.add_bos_token is None
        theirs = HFLM(pretrained=llama, tokenizer=made, max_length=64)
        assert scorer.tok_encode("the window") == theirs.tok_encode("the window") == front + words + behind
        assert scorer.tok_encode("<bos>the window") == [BOS, *words]


def test_a_context_without_room_for_what_is_written(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    def asked(text: str, **options: Any) -> Instance:
        return Instance("generate_until", {}, (text, {"until": ["\n"], "do_sample": False, **options}), 0)

    scorer = Scorer(llama, tokenizer, 2, "little")
    with pytest.raises(UserError, match=r"up to 256 tokens.*the context of little \(64\)"):
        scorer.generate_until([asked("lamp")])
    scorer.generate_until([asked(" lamp" * count, max_new_tokens=4) for count in (60, 61)])
    assert scorer.truncated == 1
