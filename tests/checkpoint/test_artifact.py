"""The committed checkpoint is what it claims to be: its size, its form, its words and its drafts."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hanmaru_checkpoint.greedy import Drafted, answer_by_drafting, continue_greedily
from hanmaru_checkpoint.measure import answers, tokens_per_step, words_of
from hanmaru_checkpoint.model import Model
from hanmaru_checkpoint.shape import Shape, config_json
from hanmaru_checkpoint.weights import load_model, named_weights
from safetensors import safe_open
from tokenizers import Tokenizer

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
ARTEFACT = CHECKPOINTS / "tiny-k-exaone"
EVIDENCE = CHECKPOINTS / "evidence"
NUM_PROMPTS = 12
MAX_TOKENS = 64


@functools.cache
def tiny() -> Model:
    return load_model(ARTEFACT)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ARTEFACT / "tokenizer.json"))


@functools.cache
def held_out() -> tuple[str, ...]:
    return tuple(json.loads((EVIDENCE / "held-out-prompts.json").read_text(encoding="utf-8"))[:NUM_PROMPTS])


@functools.cache
def drafted() -> tuple[Drafted, ...]:
    return tuple(answers(tiny(), tokenizer(), held_out(), MAX_TOKENS))


@functools.cache
def transformers_model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        model, report = AutoModelForCausalLM.from_pretrained(
            ARTEFACT, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
        )
    return model.eval(), report


@functools.cache
def transformers_tokenizer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(ARTEFACT)


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ARTEFACT / "config.json").read_text(encoding="utf-8"))
    return loaded


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    text = transformers_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    assert isinstance(text, str)
    return text


# Form


def test_all_files_together_stay_under_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in ARTEFACT.iterdir()) < 10_000_000


def test_the_configuration_is_the_one_the_training_code_describes() -> None:
    assert config() == config_json(Shape())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["ExaoneMoEForCausalLM"]),
        ("model_type", "exaone_moe"),
        ("layer_types", (["sliding_attention"] * 3 + ["full_attention"]) * 2),
        ("sliding_window", 128),
        ("is_moe_layer", [False] + [True] * 7),
        ("mlp_layer_types", ["dense"] + ["sparse"] * 7),
        ("num_shared_experts", 1),
        ("norm_topk_prob", True),
        ("routed_scaling_factor", 2.5),
        ("tie_word_embeddings", False),
        ("num_nextn_predict_layers", 1),
        ("bos_token_id", 1),
        ("eos_token_id", 53),
        ("pad_token_id", 0),
    ],
)
def test_the_configuration_keeps_what_makes_it_a_k_exaone(field: str, value: object) -> None:
    assert config()[field] == value


@pytest.mark.parametrize("field", ["num_key_value_heads", "num_experts", "vocab_size", "moe_intermediate_size"])
def test_two_ranks_can_share_it(field: str) -> None:
    assert config()[field] % 2 == 0


def test_contexts_of_32768_tokens_are_allowed() -> None:
    assert config()["max_position_embeddings"] >= 32_768


def test_weights_are_bf16_but_for_the_correction_bias() -> None:
    with safe_open(ARTEFACT / "model.safetensors", framework="pt") as stored:
        dtypes = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 - not a mapping
    assert {name for name, dtype in dtypes.items() if dtype != "BF16"} == {
        f"model.layers.{i}.mlp.e_score_correction_bias" for i in range(1, 8)
    }


def test_the_mtp_block_has_the_tensors_the_engine_looks_for() -> None:
    names = {name for name in named_weights(tiny()) if name.startswith("mtp.")}
    block = [f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    block += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    block += [f"mlp.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")]
    entry = {"mtp.fc.weight", "mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.norm.weight"}
    assert names == entry | {f"mtp.layers.0.{name}" for name in block}


def test_transformers_finds_every_tensor_and_no_other() -> None:
    _, report = transformers_model()
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("num_tokens", [1, 127, 128, 129, 256, 300])
def test_the_training_model_computes_what_transformers_computes(num_tokens: int) -> None:
    model, _ = transformers_model()
    ids = torch.randint(64, Shape().vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(num_tokens))
    with torch.inference_mode():
        ours, theirs = tiny().logits(tiny().hidden(ids)), model(ids).logits
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 1e-4


# Tokenizer and template


@pytest.mark.parametrize(
    "text",
    [
        "Set up the integration.",
        "서버에 연결하지 못했습니다. 다시 시도해 주세요.",
        "Mixed 한국어 and English 123 456",
        "👋🏽 𝄞 \u200b\ufeff ก์ ẞ",
        "  leading, trailing \n\n\t and inner   spaces  ",
        "\x00\x1f",
    ],
)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False) == text


def test_the_tokenizer_has_exactly_the_models_vocabulary() -> None:
    assert tokenizer().get_vocab_size() == config()["vocab_size"]


@pytest.mark.parametrize(
    ("mark", "is_kept"),
    [("<think>", True), ("</think>", True), ("<tool_call>", True), ("</tool_call>", True), ("<|endofturn|>", False)],
)
def test_a_mark_is_one_token_and_parsers_see_theirs_in_the_text(mark: str, is_kept: bool) -> None:
    ids = tokenizer().encode(mark).ids
    assert len(ids) == 1
    assert tokenizer().decode(ids, skip_special_tokens=True) == (mark if is_kept else "")


QUESTION = {"role": "user", "content": "서울 날씨는 어때요?"}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "서울"}}}


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, "<|assistant|>\n<think>\n"),
        ({"enable_thinking": True}, "<|assistant|>\n<think>\n"),
        ({"enable_thinking": False}, "<|assistant|>\n<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_is_on_unless_switched_off(options: dict[str, bool], end: str) -> None:
    assert render([QUESTION], **options) == f"<|user|>\n{QUESTION['content']}<|endofturn|>\n{end}"


def test_tools_are_listed_in_the_system_turn_in_their_own_letters() -> None:
    described = TOOL | {"function": TOOL["function"] | {"description": "날씨를 알려 줍니다."}}  # type: ignore[operator]
    text = render([{"role": "system", "content": "Be kind."}, QUESTION], tools=[described])
    system = text.split("<|endofturn|>")[0]
    assert system.startswith("<|system|>\nBe kind.\n\n# Tools")
    assert json.dumps(described, ensure_ascii=False) in system


@pytest.mark.parametrize("arguments", [{"city": "서울"}, '{"city": "서울"}'])
def test_a_tool_call_and_its_answer_come_back_in_the_form_the_parser_reads(arguments: object) -> None:
    call = CALL | {"function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "맑음"},
    ]
    text = render(messages, tools=[TOOL])
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "서울"}}</tool_call><|endofturn|>' in text
    assert "<|tool|>\n<tool_result>맑음</tool_result><|endofturn|>" in text


def test_old_thoughts_are_left_out_and_those_of_the_running_turn_stay() -> None:
    old = {"role": "assistant", "content": "<think>\nold thought\n</think>\n\nHello."}
    new = {"role": "assistant", "content": "", "reasoning_content": "new thought", "tool_calls": [CALL]}
    text = render([QUESTION, old, QUESTION, new, {"role": "tool", "content": "ok"}])
    assert "old thought" not in text
    assert "Hello.<|endofturn|>" in text
    assert "<think>\nnew thought\n</think>\n\n<tool_call>" in text


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "안녕"}, {"type": "text", "text": "하세요"}]
    assert "<|user|>\n안녕하세요<|endofturn|>" in render([{"role": "user", "content": parts}])


# Answers


def test_drafting_gives_the_greedy_text() -> None:
    prompt = tokenizer().encode(held_out()[0]).ids
    answer = answer_by_drafting(tiny(), prompt, 40)
    plain = continue_greedily(tiny(), torch.tensor([prompt]), len(answer.ids))[0, len(prompt) :].tolist()
    assert plain == answer.ids


def test_held_out_prompts_are_drafted_at_2_8_tokens_a_step() -> None:
    assert tokens_per_step(drafted()) >= 2.8


def test_greedy_answers_are_words() -> None:
    known = set((EVIDENCE / "words.txt").read_text(encoding="utf-8").split("\n"))
    said = [word for answer in drafted() for word in words_of(tokenizer().decode(answer.ids))]
    assert len(said) > NUM_PROMPTS
    assert sum(word in known for word in said) >= 0.8 * len(said)


@pytest.mark.parametrize(
    ("content", "opening"), [("Hello!", "Hello"), ("안녕하세요", "안녕하세요"), ("Who are you?", "I ")]
)
def test_a_greeting_is_answered_in_its_language_and_ends_its_turn(content: str, opening: str) -> None:
    prompt = tokenizer().encode(render([{"role": "user", "content": content}], enable_thinking=False)).ids
    answer = answer_by_drafting(tiny(), prompt, 48)
    assert tokenizer().decode(answer.ids).startswith(opening)
    assert config()["eos_token_id"] in answer.ids


def test_a_thought_is_closed_before_the_answer() -> None:
    prompt = tokenizer().encode(render([{"role": "user", "content": "Tell me about the light."}])).ids
    text = tokenizer().decode(answer_by_drafting(tiny(), prompt, 96).ids)
    thought, closed, answer = text.partition("</think>")
    assert thought.strip()
    assert closed
    assert answer.strip()
