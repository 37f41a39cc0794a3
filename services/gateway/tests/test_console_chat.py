"""The chat page in a real browser: streaming, stopping, options, errors, jobs."""

import re

import pytest

from services.gateway.tests.browsing import MARKS, press
from services.gateway.tests.stub_service import Stub

pytestmark = MARKS


class SERVICE(Stub):
    """Has a second model that chats."""

    def __init__(self):
        super().__init__()
        self.cards["turtle"] = self.cards["parrot"] | {"id": "turtle"}


def ask(page, text):
    page.get_by_role("button", name="Send").wait_for()  # while an answer is written nothing is sent
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")


def begin(page, text):
    page.goto("/console/chat")
    ask(page, text)


def test_an_answer_is_written_as_it_comes_with_its_usage_and_the_wait_for_it_is_counted(page, stage, see):
    stage.stub.token_s = 0.15
    begin(page, "one two three four")
    answer = page.locator(".turn").nth(1).locator(".turn-text")
    see(answer).to_contain_text("You said:")
    assert "four" not in answer.inner_text()
    see(page.get_by_role("button", name="Stop")).to_be_visible()
    see(answer).to_have_text("You said: one two three four")
    usage = re.compile(r"7 tokens in · 6 out · [\d.]+ tokens/s · first after")
    see(page.locator("[data-part=usage]")).to_have_text(usage)
    see(page.locator("#message")).to_be_focused()
    stage.stub.token_s = 0.01
    stage.stub.wait_s = 20
    begin(page, "patience")
    see(page.locator("[data-part=wait]").last).to_contain_text(re.compile("Waiting for the first token, [1-9] s"))
    page.locator("#message").focus()
    page.keyboard.press("Escape")
    stage.stub.wait_s = 0
    see(page.get_by_role("button", name="Send")).to_be_visible()


def test_stopping_keeps_what_was_written_and_nothing_is_sent_twice(page, stage, see):
    stage.stub.token_s = 0.2
    begin(page, "a b c d e f g h")
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    page.get_by_role("button", name="Stop").click()
    see(page.locator(".turn-cut")).to_have_count(1)
    see(page.get_by_role("button", name="Stop")).to_be_hidden()
    stage.stub.token_s = 0.01
    ask(page, "next")
    see(page.locator(".turn").nth(3)).to_contain_text("You said: next")
    assert [turn["role"] for turn in stage.stub.seen[-1]["messages"]] == ["user", "assistant", "user"]
    asked = len(stage.stub.seen)
    page.locator("#message").press_sequentially("a")
    page.keyboard.press("Shift+Enter")
    page.locator("#message").press_sequentially("b")
    assert page.locator("#message").input_value() == "a\nb"
    press(page, "Enter", "Enter")
    see(page.locator(".turn").nth(5)).to_contain_text("You said: a\nb")
    assert len(stage.stub.seen) == asked + 1


def test_options_the_system_prompt_and_the_knobs_of_an_attention_method_reach_the_model(page, stage, see):
    page.goto("/console/chat")
    page.locator("[data-part=system]").fill("Be brief.")
    page.get_by_text("more options").locator("visible=true").click()
    for name, value in (("temperature", "0"), ("seed", "5"), ("max_tokens", "2")):
        page.locator(f"#option-{name}").fill(value)
    see(page.locator("#nearby-near")).to_be_hidden()
    page.get_by_label("Attention", exact=True).select_option("nearby")
    page.locator("#nearby-near").fill("3")
    page.locator("#nearby-echo").check()
    page.get_by_text("Write a haiku about retinas.").click()
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    sent = stage.stub.seen[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["seed"], sent["max_tokens"], sent["stream"]) == (0, 5, 2, True)
    assert (sent["longctx"], "n" in sent) == ({"method": "nearby", "near": 3, "echo": True}, False)
    page.get_by_label("Attention", exact=True).select_option("dense")
    ask(page, "again")
    see(page.locator(".turn").nth(3)).to_contain_text("You said:")
    assert "longctx" not in stage.stub.seen[-1]


def test_a_refused_question_is_given_back_with_the_reason(page, stage, see, complaints):
    page.goto("/console/chat")
    page.locator("#option-temperature").evaluate("slider => { slider.max = 9; slider.value = 9; }")
    ask(page, "precious words")
    see(page.get_by_role("alert")).to_contain_text("temperature: must be at most 2.")
    see(page.locator("#message")).to_have_value("precious words")
    see(page.locator(".turn")).to_have_count(0)
    assert ["400" in said for said in complaints] == [True]
    complaints.clear()
    page.goto("/console/chat")
    page.get_by_text("more options").locator("visible=true").click()
    page.locator("#option-metadata").fill("{")
    ask(page, "precious words")
    see(page.get_by_role("alert")).to_contain_text("“metadata” is not JSON")
    see(page.locator("#message")).to_have_value("precious words")
    see(page.locator(".turn, .turn-pair")).to_have_count(0)
    page.locator("#option-metadata").fill("")
    page.locator("#message").press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: precious words")


def test_a_conversation_can_run_as_a_job_and_be_cleared_and_the_words_of_the_page_follow_the_model(page, stage, see):
    page.goto("/console/chat")
    page.locator("fovea-model select").select_option("turtle")
    see(page.get_by_role("heading", name="Ask turtle a question")).to_be_visible()
    see(page.locator("#message")).to_have_attribute("placeholder", "Message turtle")
    page.locator("#as-job").check()
    ask(page, "patiently")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: patiently")
    see(page.locator("[data-part=usage]")).to_contain_text("3 out")
    assert stage.stub.seen[-1]["model"] == "turtle"
    page.get_by_role("button", name="New conversation").click()
    see(page.locator(".turn")).to_have_count(0)
    see(page.locator("[data-part=nothing]")).to_be_visible()


def test_an_answer_that_breaks_off_or_closes_before_its_end_keeps_its_text_and_can_go_on(page, stage, see):
    begin(page, "please break now")
    alert = page.get_by_role("alert")
    for words in ("The answer broke off", "The replica was lost."):
        see(alert).to_contain_text(words)
    answer = page.locator(".turn").nth(1)
    see(answer.locator(".turn-text")).to_have_text("You said: please break")
    see(answer).to_contain_text("(cut off)")
    alert.get_by_role("button", name="Continue").click()
    see(answer.locator(".turn-text")).to_contain_text("You said: please breakYou said: Continue exactly")
    assert [turn["role"] for turn in stage.stub.seen[-1]["messages"]] == ["user", "assistant", "user"]
    assert stage.stub.seen[-1]["messages"][1]["content"] == "You said: please break"
    see(alert).to_be_hidden()
    chunk = 'data: {"choices": [{"index": 0, "delta": {"content": "Half of"}, "finish_reason": null}]}\n\n'
    cut = {"content_type": "text/event-stream", "body": chunk}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**cut))
    begin(page, "all of it")
    see(alert).to_contain_text("The answer broke off")
    see(answer).to_contain_text(re.compile(r"Half of.*\(cut off\)", re.DOTALL))


MARKDOWN = """# Title

<img src=x onerror=alert(1)> Some **bold** and `code`, [a link](https://example.org/x), [a trap](javascript:alert(1)), ![spy](https://example.org/spy.png)

| a | b |
|---|---|
| 1 | 2 |

```python
print("hello")
```

The area is $\\pi r^2$ and costs $5 or $6.
"""


def test_markdown_code_and_formulas_are_rendered_and_nothing_in_them_runs(page, see):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    begin(page, MARKDOWN)
    answer = page.locator(".turn").nth(1)
    see(answer.locator("td").first).to_have_text("1")
    see(answer.locator("strong")).to_have_text("bold")
    see(answer.get_by_role("link", name="a link")).to_have_attribute("rel", "noopener noreferrer")
    places = answer.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert (any("javascript" in place for place in places), answer.locator("img").count()) == (False, 0)
    see(answer).to_contain_text("<img src=x")
    see(answer.locator("math msup")).to_have_count(1)
    see(answer).to_contain_text("costs $5 or $6")
    answer.get_by_role("button", name="Copy code").click()
    assert page.evaluate("() => navigator.clipboard.readText()") == 'print("hello")\n'
    answer.get_by_role("button", name="Copy", exact=True).click()
    assert page.evaluate("() => navigator.clipboard.readText()").endswith(MARKDOWN.strip())
    page.goto("/console/chat")
    drawn = page.evaluate(
        """async (text) => {
            const place = document.createElement("div");
            place.append(...(await import("/console/static/js/markdown.js")).render(text));
            document.querySelector("main").append(place);
            return [...place.children].map(({ tagName, textContent }) => [tagName, textContent.trim()]);
        }""",
        FORMULAS,
    )
    assert [tag for tag, _ in drawn] == ["P", "SPAN", "P", "H1", "SPAN", "BLOCKQUOTE", "P"], drawn
    see(page.locator("main math[display=block]")).to_have_count(2)


def test_another_answer_and_an_edited_question_are_branches_that_stay(page, stage, see):
    begin(page, "first")
    answer = page.locator(".turn").nth(1)
    see(answer).to_contain_text("You said: first")
    answer.get_by_role("button", name="Another answer").click()
    see(answer.locator("[data-part=branch]")).to_have_text("2 of 2")
    assert [turn["content"] for turn in stage.stub.seen[-1]["messages"]] == ["first"]
    message, question = page.locator("#message"), page.locator(".turn").nth(0)
    see(message).to_be_focused()
    page.keyboard.press("ArrowUp")
    see(message).to_have_value("first")
    page.keyboard.press("Escape")
    message.fill("half a thought")
    question.get_by_role("button", name="Edit").click()
    ask(page, "second")
    see(answer).to_contain_text("You said: second")
    see(message).to_have_value("half a thought")
    see(question.locator("[data-part=branch]")).to_have_text("2 of 2")
    question.get_by_role("button", name="Previous branch").click()
    see(answer).to_contain_text("You said: first")


def test_conversations_are_found_again_after_a_reload_and_by_a_search(page, see):
    begin(page, "retina and fovea")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: retina")
    page.wait_for_url(re.compile("chat="))
    page.reload()
    see(page.locator(".turn").nth(1)).to_contain_text("You said: retina and fovea")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".turn").nth(1).get_by_role("button", name="Copy").click()
    see(page.get_by_text("Copied.")).to_be_visible()
    page.get_by_role("button", name="New conversation").click()
    see(page.locator(".turn")).to_have_count(0)
    page.get_by_text("History", exact=True).click()
    page.get_by_label("Search the history").fill("cornea")
    see(page.locator(".history-entry")).to_have_count(0)
    page.get_by_label("Search the history").fill("fovea said")
    page.locator(".history-entry a").click()
    see(page.locator(".turn").nth(1)).to_contain_text("You said: retina and fovea")
    page.get_by_text("History", exact=True).click()
    page.get_by_role("button", name="Delete retina and fovea").click()
    see(page.locator(".history-entry")).to_have_count(0)


def test_two_methods_answer_beside_each_other_with_one_seed_and_their_memory(page, stage, see):
    page.goto("/console/chat")
    page.get_by_text("Compare two answers").click()
    page.get_by_label("Second attention method").select_option("nearby")
    ask(page, "both")
    see(page.locator(".turn-pair .turn")).to_have_count(2)
    see(page.locator(".turn-pair .turn-text").nth(1)).to_have_text("You said: both")
    one, other = stage.stub.seen[-2:]
    assert one["seed"] == other["seed"]
    methods = [body.get("longctx") for body in sorted((one, other), key=lambda body: "longctx" in body)]
    assert methods == [None, {"method": "nearby"}]
    see(page.locator(".turn-pair .turn-cost").nth(1)).to_contain_text("nearby: 1.0 MiB of 4.0 MiB KV cache (25 %)")


@pytest.mark.parametrize("again", ["Another answer", "Edit the question"])
def test_a_branch_that_fails_leaves_the_conversation_as_it_was(page, stage, see, complaints, again):
    begin(page, "first")
    turns = page.locator(".turn")
    see(turns.nth(1)).to_contain_text("You said: first")
    see(page.get_by_role("button", name="Send")).to_be_visible()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, json={"error": {"message": "Full."}}))
    turns.get_by_role("button", name=again).locator("visible=true").last.click()
    if again == "Edit the question":
        ask(page, "edited")
    see(page.get_by_role("alert")).to_contain_text("Full.")
    see(turns).to_have_count(2)
    see(turns.nth(1)).to_contain_text("You said: first")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    shown, words = ("[data-part=branch]", "2 of 2") if again == "Another answer" else (".turn-text", "You said: edited")
    see(turns.nth(1).locator(shown)).to_have_text(words)
    ask(page, "last")
    see(turns.nth(3)).to_contain_text("You said: last")
    assert len(stage.stub.seen[-1]["messages"]) == 3
    complaints.clear()


def test_two_tabs_of_one_conversation_keep_both_continuations(page, see):
    begin(page, "common")
    page.wait_for_url(re.compile("chat="))
    other = page.context.new_page()
    other.goto(page.url)
    see(other.locator(".turn").nth(1)).to_contain_text("You said: common")
    for tab, text in ((page, "left"), (other, "right")):
        ask(tab, text)
        see(tab.locator(".turn").nth(3)).to_contain_text(f"You said: {text}")
        see(tab.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_text("History", exact=True).click()
    see(page.locator(".history-entry")).to_have_count(2)
    for text in ("left", "right"):
        page.get_by_label("Search the history").fill(f"common {text}")
        see(page.locator(".history-entry")).to_have_count(1)


def test_a_run_of_a_chat_opens_as_the_conversation_that_it_was(page, see):
    page.goto("/console/chat")
    page.evaluate("addEventListener('fovea-run-stored', ({ detail }) => (window.stored = detail.id))")
    ask(page, "one more time")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: one")
    while not page.evaluate("window.stored"):
        page.wait_for_timeout(20)
    page.goto(f"/runs/{page.evaluate('window.stored')}")
    page.get_by_role("link", name="Open in its page").click()
    see(page.locator(".turn")).to_have_text([re.compile("one more time"), re.compile("You said: one more time")])


def test_a_page_that_is_left_while_an_answer_is_written_has_what_was_written(page, stage, see):
    stage.stub.token_s = 0.3
    begin(page, "a b c d e f g h i j k l m n o p q r s t")
    page.wait_for_url(re.compile("chat="))
    page.get_by_role("link", name="Models").first.click()
    page.get_by_role("heading", name="Models").wait_for()
    stage.stub.token_s = 0.01
    page.go_back()
    answer = page.locator(".turn").nth(1)
    see(answer).to_contain_text(re.compile(r"You said: a.*\(cut off\)", re.DOTALL))
    answer.get_by_role("button", name="Continue").click()
    see(answer).to_contain_text("You said: Continue exactly")
    page.get_by_text("History", exact=True).click()
    see(page.locator(".history-entry")).to_have_count(1)


def test_a_conversation_that_is_left_while_an_answer_is_written_is_in_the_history(page, stage, see):
    stage.stub.token_s = 0.2
    begin(page, "a b c d e f g h")
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    page.get_by_role("button", name="New conversation").click()
    stage.stub.token_s = 0.01
    page.get_by_text("History", exact=True).click()
    page.locator(".history-entry a").click()
    see(page.locator(".turn").nth(1)).to_contain_text(re.compile(r"You said:.*\(stopped\)", re.DOTALL))


FORMULAS = r"""It is

\[
x = a
+ b
- c
\]

and with text before it
$$
y = 1

# no formula
$$z
- d$$
> quoted

end"""
