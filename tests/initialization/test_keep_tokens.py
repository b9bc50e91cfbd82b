"""Models with fewer tokens: the kept ones have the logits that they had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from inheritune import UserError
from inheritune.initialization.assemble import assemble
from inheritune.initialization.vocabulary import keep_tokens, named_tokens
from tiny_models import ARCHITECTURES, LAYERS, VOCABULARY, shaken, tiny_model
from tiny_types import tiny_of_type

KEPT = [0, 1, 2, 5, *range(20, 70, 2), 90, 96]


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_kept_tokens_have_the_logits_they_had(tmp_path: Path, model_type: str, tied: bool) -> None:
    whole = shaken(tiny_model(model_type, tie_word_embeddings=tied))
    rows = torch.tensor(KEPT)
    small = assemble(whole, range(LAYERS))
    keep_tokens(small, KEPT)
    assert small.config.vocab_size == len(KEPT)
    assert len(small.get_input_embeddings().weight) == len(small.get_output_embeddings().weight) == len(KEPT)
    shared = small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert shared == (whole.get_output_embeddings().weight is whole.get_input_embeddings().weight)
    places = torch.arange(3, len(KEPT)).view(1, -1)
    torch.testing.assert_close(logits(small, places), logits(whole, rows[places])[..., rows])
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, places), logits(small, places))
    for name, module in again.named_modules():
        if isinstance(module, torch.nn.Embedding):
            assert module.padding_idx == small.get_submodule(name).padding_idx


def test_a_head_with_a_bias() -> None:
    whole = shaken(tiny_model("phi"))
    head = whole.get_output_embeddings().bias.detach().clone()
    assert head.abs().min() > 0
    keep_tokens(whole, KEPT)
    assert torch.equal(whole.get_output_embeddings().bias, head[KEPT])


def test_ids_in_the_configurations_follow() -> None:
    model = tiny_model("llama", pad_token_id=90, bos_token_id=5, eos_token_id=[2, 96])
    model.generation_config.eos_token_id = [2, 3, 96]
    model.generation_config.pad_token_id = 7
    assert named_tokens(model.config) == {90, 5, 2, 96}
    keep_tokens(model, KEPT)
    config, generation = model.config, model.generation_config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (29, 3, [2, 30])
    assert (generation.eos_token_id, generation.pad_token_id) == ([2, 30], None)
    assert model.get_input_embeddings().padding_idx == 29


def test_rows_of_no_token_go() -> None:
    model = tiny_model("llama", vocab_size=128)
    keep_tokens(model, range(VOCABULARY))
    assert model.config.vocab_size == VOCABULARY


def test_a_token_without_a_row() -> None:
    with pytest.raises(UserError, match="its tokenizer has token 97, but its embedding only 97 rows"):
        keep_tokens(tiny_model("llama"), [0, 1, 2, 97])


def test_embeddings_for_each_layer(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": 95,  # token 96 reads those of token 0
        "hidden_size": 32,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * LAYERS,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    }
    whole = shaken(tiny_model("gemma3n_text", **sizes))
    rows, places = torch.tensor(KEPT), torch.arange(3, len(KEPT)).view(1, -1)
    expected = logits(whole, rows[places])[..., rows]
    keep_tokens(whole, KEPT)
    torch.testing.assert_close(logits(whole, places), expected)
    assert (
        whole.config.vocab_size_per_layer_input == len(whole.model.embed_tokens_per_layer.weight) == len(KEPT)
    )
    whole.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path), places), expected)


def test_a_model_in_which_something_else_depends_on_the_token_is_refused() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.register_forward_hook(lambda module, ids, output: output * ids[0][..., None])
    with pytest.raises(UserError, match="the logits of those that are kept would change, as something else"):
        keep_tokens(model, KEPT)


def test_a_configuration_that_cannot_be_without_an_id() -> None:
    model = tiny_of_type("modernbert-decoder").eval()
    with pytest.raises(
        UserError, match=r"cannot take tokens out of this 'modernbert-decoder' model: .*NoneType"
    ):
        keep_tokens(model, range(60))
