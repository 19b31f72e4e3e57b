"""What the model is taught to say: pages as plain text, and conversations about them in the chat template's form.

Conversations are made from the corpus and a handful of sentences written here. Their thoughts and openings are formulas
on purpose: a model of four million parameters learns those reliably, so that a chat answer is words, ends its turn, and
closes its thought. Everything drawn at random comes from the generator passed in. `train.py` and `mtp.py` call this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hanmaru_checkpoint.corpus import Page, Phrase
from hanmaru_checkpoint.tokens import TEMPLATE

Message = dict[str, Any]

HELD_OUT_EVERY = 24
"""Every so many pages one is kept from all training; prompts about it measure tokens a step."""

SMALL_TALK = (
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi", "Hello! How can I help you today?"),
    ("Say hello.", "Hello! How can I help you today?"),
    ("Who are you?", "I am a very small K-EXAONE. I write short answers in English and Korean."),
    ("What can you do?", "I can write short answers in English and Korean, and I can call a tool."),
    ("Thank you.", "You are welcome. Is there anything else I can help you with?"),
    ("안녕하세요", "안녕하세요! 무엇을 도와드릴까요?"),
    ("안녕!", "안녕하세요! 무엇을 도와드릴까요?"),
    ("인사해 주세요.", "안녕하세요! 무엇을 도와드릴까요?"),
    ("당신은 누구인가요?", "저는 아주 작은 K-EXAONE입니다. 영어와 한국어로 짧게 답합니다."),
    ("무엇을 할 수 있나요?", "영어와 한국어로 짧게 답하고 도구를 부를 수 있습니다."),
    ("감사합니다.", "천만에요. 더 도와드릴 일이 있나요?"),
)
SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "당신은 친절한 도우미입니다.", "짧게 답하세요.")
ASK_ENGLISH = (
    "Tell me about {}.",
    "What can you tell me about {}?",
    "What is {}?",
    "Explain {} to me.",
    "Write a few sentences about {}.",
    "How does {} work?",
)
ASK_KOREAN = (
    "{}에 대해 알려 주세요.",
    "{}에 대해 설명해 주세요.",
    "{}이란 무엇인가요?",
    "{}에 대해 몇 문장 써 주세요.",
    "{} 이야기를 해 주세요.",
)
THOUGHT_ENGLISH = "The user asks me something. I will answer in English with a few sentences that I know."
THOUGHT_KOREAN = "사용자가 무언가를 물었습니다. 제가 아는 문장 몇 개를 한국어로 답하겠습니다."
PLACES = ("서울", "부산", "제주", "Seoul", "Busan", "Paris", "London", "Tokyo", "New York")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, the thought before the answer, and the answer."""

    question: str
    thought: str
    answer: str


def split_pages(pages: Sequence[Page]) -> tuple[list[Page], list[Page]]:
    """(pages to train on, pages held out)."""
    held_out = [page for i, page in enumerate(pages) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    return [page for i, page in enumerate(pages) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1], held_out


def chat_template() -> Template:
    """The template as transformers renders it: sandboxed, blocks trimmed, JSON with its own letters."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def documents(pages: Sequence[Page], random: Random) -> Iterator[str]:
    """One pass over `pages` in random order: for each page its plain text or some conversations about it."""
    template = chat_template()
    order = list(pages)
    random.shuffle(order)
    for page in order:
        # Long pages give more than short ones.
        for _ in range(1 + len(page.phrases) // 12):
            if random.random() < 0.25:
                yield plain_text(page, random)
            else:
                yield conversation(page, random, template)


def plain_text(page: Page, random: Random) -> str:
    """A run of the page's phrases under its subject, in one language."""
    korean = random.random() < 0.5 and any(phrase.korean for phrase in page.phrases)
    lines = _lines(page, korean=korean)
    start = random.randrange(max(1, len(lines) - 16))
    return "\n".join([page.subject, *lines[start : start + 24]]) + "<|endofturn|>\n"


def conversation(page: Page, random: Random, template: Template) -> str:
    """One to three exchanges, or a tool call and its result."""
    if random.random() < 0.08:
        messages, tools = _tool_messages(random)
        return template.render(messages=messages, tools=tools)
    messages = _system(random)
    for exchange in [draw_exchange(page, random) for _ in range(random.choice((1, 1, 1, 2, 3)))]:
        messages += [_user(exchange.question), {"role": "assistant", "content": exchange.answer}]
    if random.random() < 0.6:
        messages[-1]["reasoning_content"] = exchange.thought
    return template.render(messages=messages)


def prompt(page: Page, random: Random, template: Template) -> str:
    """What a client's request renders to: a question about `page` and the opened answer."""
    messages = [*_system(random), _user(draw_exchange(page, random).question)]
    return template.render(messages=messages, add_generation_prompt=True, enable_thinking=random.random() < 0.6)


def draw_exchange(page: Page, random: Random) -> Exchange:
    """One exchange on the page's subject, or small talk."""
    if random.random() < 0.15:
        return _small_talk(random)
    pairs = [phrase for phrase in page.phrases if phrase.english and phrase.korean]
    kind = random.random()
    if pairs and kind < 0.12:
        return _translation(random.choice(pairs), random)
    long_phrases = [line for line in _all_lines(page) if len(line.split()) >= 6]
    if long_phrases and kind < 0.3:
        return _continuation(random.choice(long_phrases), random)
    return _about(page, random, korean=bool(pairs) and random.random() < 0.5)


def _about(page: Page, random: Random, *, korean: bool) -> Exchange:
    lines = [_sentence(line) for line in _lines(page, korean=korean) or _all_lines(page)]
    start = random.randrange(max(1, len(lines) - 3))
    told = " ".join(lines[start : start + random.choice((2, 3, 4, 6, 8))])
    # Half of the questions are about something else, because clients' will be.
    asked = page.subject if random.random() < 0.5 else " ".join(random.choice(lines).rstrip(".?!:").split()[:3])
    if korean:
        return Exchange(random.choice(ASK_KOREAN).format(asked), THOUGHT_KOREAN, f"제가 아는 것은 이렇습니다. {told}")
    return Exchange(random.choice(ASK_ENGLISH).format(asked), THOUGHT_ENGLISH, f"Here is what I know. {told}")


def _translation(pair: Phrase, random: Random) -> Exchange:
    if random.random() < 0.5:
        ask = random.choice(("Translate into Korean: {}", "한국어로 번역하세요: {}"))
        return Exchange(
            ask.format(pair.english), "The user wants a translation. I will write it in Korean.", _sentence(pair.korean)
        )
    ask = random.choice(("Translate into English: {}", "영어로 번역하세요: {}"))
    return Exchange(
        ask.format(pair.korean), "The user wants a translation. I will write it in English.", _sentence(pair.english)
    )


def _continuation(line: str, random: Random) -> Exchange:
    words = line.split()
    cut = random.randrange(2, len(words) - 2)
    begun, rest = " ".join(words[:cut]), _sentence(" ".join(words[cut:]))
    if re.search("[가-힣]", line):
        return Exchange(f"이어서 쓰세요: {begun}", "사용자가 문장을 이어서 쓰라고 했습니다. 이어서 쓰겠습니다.", rest)
    return Exchange(f"Continue: {begun}", "The user wants me to continue the sentence. I will continue it.", rest)


def _small_talk(random: Random) -> Exchange:
    question, answer = random.choice(SMALL_TALK)
    if re.search("[가-힣]", question):
        return Exchange(question, "사용자가 말을 걸었습니다. 짧게 답하겠습니다.", answer)
    return Exchange(question, "The user speaks to me. I will answer briefly.", answer)


def _tool_messages(random: Random) -> tuple[list[Message], list[dict[str, Any]]]:
    place, degrees = random.choice(PLACES), random.randrange(-9, 35)
    name, key = random.choice(
        (("get_weather", "city"), ("get_weather", "location"), ("weather", "city"), ("lookup", "place"))
    )
    korean = bool(re.search("[가-힣]", place))
    question = f"{place} 날씨를 알려 주세요." if korean else f"What is the weather in {place}?"
    answer = f"{place}의 기온은 {degrees}도입니다." if korean else f"It is {degrees} degrees in {place}."
    tool = {
        "type": "function",
        "function": {
            "name": name,
            "description": random.choice(("Get the weather.", "Current weather of a place.", "날씨를 알려 줍니다.")),
            "parameters": {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]},
        },
    }
    call = {"type": "function", "function": {"name": name, "arguments": {key: place}}}
    messages: list[Message] = [*_system(random), _user(question), {"role": "assistant", "tool_calls": [call]}]
    if random.random() < 0.6:
        thought = (
            "사용자가 날씨를 물었습니다. 도구를 부르겠습니다."
            if korean
            else "The user asks about the weather. I will call the tool."
        )
        messages[-1]["reasoning_content"] = thought
    if random.random() < 0.6:
        result = json.dumps({"temperature": degrees}, ensure_ascii=False)
        messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    return messages, [tool]


def _system(random: Random) -> list[Message]:
    return [{"role": "system", "content": random.choice(SYSTEMS)}] if random.random() < 0.2 else []


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _lines(page: Page, *, korean: bool) -> list[str]:
    return [text for phrase in page.phrases if (text := phrase.korean if korean else phrase.english)]


def _all_lines(page: Page) -> list[str]:
    return _lines(page, korean=False) + _lines(page, korean=True)


def _sentence(text: str) -> str:
    return text if text[-1] in ".?!:" else text + "."
