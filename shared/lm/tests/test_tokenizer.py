"""Text, tokens and characters: what a stream may show, and what a chat template may do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from fovea.errors import InvalidOption, Malformed, NotFound
from shared.lm.tokenizer import Detokenizer, Tokenizer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def byte_level(**facts) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "th", "the", "ðŁ", "ðŁĺ"])}
    library = Library(models.BPE(vocabulary, [("t", "h"), ("th", "e"), ("ð", "Ł"), ("ðŁ", "ĺ")]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return Tokenizer(library, **facts)


BYTES, END = byte_level(), "<|im_end|>"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_survives_tokens_and_streaming(text):
    ids = BYTES.encode(text)
    stream = Detokenizer(BYTES)
    pieces = [stream.feed(i) for i in ids]
    if "<|im_end|>" not in text:
        assert BYTES.decode(ids) == text
        assert "".join(pieces) + stream.end() == text
    assert "�" not in "".join(pieces).replace("�", "" if "�" in text else "�")


@given(st.lists(st.integers(0, BYTES.size - 1), max_size=30))
def test_any_tokens_stream_to_their_decoded_text(ids):
    stream = Detokenizer(BYTES)
    assert "".join(map(stream.feed, ids)) + stream.end() == BYTES.decode(ids, special=False)


def test_characters_are_shown_whole_and_special_tokens_are_not_text():
    ids = BYTES.encode("the 😀!")
    stream = Detokenizer(BYTES)
    assert [BYTES.token_text(i) for i in ids] == ["the", " ", r"bytes:\xf0\x9f\x98", r"bytes:\x80", "!"]
    assert [stream.feed(i) for i in ids] == ["the", " ", "", "😀", "!"]
    assert BYTES.longest == len("<|im_end|>")
    (end,) = BYTES.special
    assert BYTES.token_bytes(end) == b"<|im_end|>"
    assert Detokenizer(BYTES).feed(end) == ""
    assert (BYTES.decode([end]), BYTES.decode([end], special=False)) == ("<|im_end|>", "")
    assert BYTES.token_bytes(BYTES.size + 7) == b"", "ids behind the vocabulary stand for nothing"


def test_sentencepiece_spaces_and_byte_fallbacks_are_bytes():
    library = Library(models.BPE({"▁": 0, "a": 1, "<0xC3>": 2, "<0xBC>": 3, "▁a": 4}, [("▁", "a")], byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_next")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    stream = Detokenizer(Tokenizer(library))
    assert [stream.feed(i) for i in (4, 1, 2, 3, 0)] == [" a", "a", "", "ü", " "]


def test_a_folder_states_its_ends_and_its_template(tmp_path):
    BYTES._library.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": {"content": "the"}, "bos_token": "a"}
    config["chat_template"] = [{"name": "default", "template": CHAT}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos == {tokenizer.encode("the")[0], 3, 4, *tokenizer.special}
    assert tokenizer.chat([{"role": "user", "content": "Hi"}]) == "<user>Hithe<assistant>"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}], add_generation_prompt=False) == "<user>Hithe"
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert Tokenizer.from_folder(tmp_path).chat([]) == "0", "the file wins"


def test_the_models_first_token_is_put_in_front_when_asked_for():
    tokenizer = byte_level()
    tokenizer._library.post_processor = processors.TemplateProcessing("the $A", special_tokens=[("the", 257)])
    assert tokenizer.encode("a")[0] == 257
    assert tokenizer.encode("a", special=False) == BYTES.encode("a")


def test_old_folders_of_vocabulary_and_merges_are_read(tmp_path):
    letters = {letter: i for i, letter in enumerate([*pre_tokenizers.ByteLevel.alphabet(), "ab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("ab c")] == ["ab", " ", "c"]


def test_broken_and_missing_tokenizers_are_told_apart(tmp_path):
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Malformed, match="can't be read"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}",
    "{{ raise_exception('no system role') }}", "{{ messages[0].content.missing.deeper }}",
    "{% for i in range(10**9) %}{% endfor %}",
])  # fmt: skip
def test_templates_run_in_a_sandbox_and_their_refusals_are_ours(template):
    with pytest.raises(InvalidOption, match="template refuses"):
        byte_level(chat_template=template).chat([{"role": "user", "content": "Hi"}])


def test_templates_have_what_official_ones_use():
    with pytest.raises(Malformed, match="template"):
        byte_level(chat_template="{% endfor %}")
    source = "{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}{{ strftime_now('%Y')[:2] }}"
    assert byte_level(chat_template=source).chat([{"role": "ü"}, {}]) == '{"role": "ü"}20'


def test_a_template_that_fails_and_messages_that_are_too_deep_are_refused():
    deep = list[object]()
    for _ in range(2000):
        deep = [deep]
    for source, content in (("{{ 1 / 0 }}", "a"), ("{{ 'a'.encode('utf-9') }}", "a"), ("{{ 1 }}", deep)):
        with pytest.raises(InvalidOption, match="refuses these messages"):
            byte_level(chat_template=source).chat([{"role": "user", "content": content}])
    with pytest.raises(Malformed, match="template"):
        byte_level(chat_template="{% break %}")


@given(st.text(st.sampled_from("<|im_end> a\ufdd0the"), max_size=20))
def test_names_of_special_tokens_in_a_message_stay_text(around):
    tokenizer = byte_level(chat_template=CHAT, names={"eos_token": "<|im_end|>"})
    content = f"{around}<|im_end|>\n<|im_end|>{around}"
    text = tokenizer.chat([{"role": "user", "content": content}], add_generation_prompt=False)
    ids = tokenizer.encode(text)
    (end,) = tokenizer.special
    assert ids.count(end) == 1, "the template's own"
    assert ids[-1] == end
    assert tokenizer.decode(ids) == f"<user>{content}<|im_end|>"
    assert tokenizer.encode("<|im_end|>") == [end], "a raw prompt may hold special tokens"


def test_names_of_special_tokens_in_a_function_stay_text():
    tokenizer, name = byte_level(chat_template="{{ tools | tojson }}{{ eos_token }}", names={"eos_token": END}), END
    text = tokenizer.chat([], tools=[{"name": name, "parameters": {"properties": {name: {"enum": [name]}}}}])
    assert tokenizer.encode(text).count(*tokenizer.special) == 1, "the template's own"
    assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.show(text)
    assert tokenizer.show(text).count(END) == 4
