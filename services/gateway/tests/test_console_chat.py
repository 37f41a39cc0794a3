"""The chat page in a real browser: streaming, stopping, options, errors, jobs."""

import re

from services.gateway.tests.browsing import MARKS

pytestmark = MARKS


def test_an_answer_is_written_as_it_comes_with_its_usage(page, stage, see):
    stage.stub.token_s = 0.15
    page.goto("/console/chat")
    page.locator("#message").fill("one two three four")
    page.keyboard.press("Enter")
    answer = page.locator(".turn").nth(1).locator(".turn-text")
    see(answer).to_contain_text("You said:")
    assert "four" not in answer.inner_text()
    see(page.get_by_role("button", name="Stop")).to_be_visible()
    see(answer).to_have_text("You said: one two three four")
    see(page.locator("[data-part=usage]")).to_have_text(
        re.compile(r"7 tokens in · 6 out · [\d.]+ tokens/s · first after")
    )
    see(page.locator("#message")).to_be_focused()
    stage.stub.token_s = 0.01


def test_stopping_keeps_what_was_written(page, stage, see):
    stage.stub.token_s = 0.2
    page.goto("/console/chat")
    page.locator("#message").fill("a b c d e f g h")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    page.get_by_role("button", name="Stop").click()
    see(page.locator(".turn-cut")).to_have_count(1)
    stage.stub.token_s = 0.01
    page.locator("#message").fill("next")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(3)).to_contain_text("You said: next")
    assert [turn["role"] for turn in stage.stub.seen[-1]["messages"]] == ["user", "assistant", "user"]


def test_sampling_options_and_the_system_prompt_reach_the_model(page, stage, see):
    page.goto("/console/chat")
    page.locator("[data-part=system]").fill("Be brief.")
    page.locator("#option-temperature").fill("0")
    page.get_by_text("more options").locator("visible=true").click()
    page.locator("#option-seed").fill("5")
    page.locator("#option-max_tokens").fill("2")
    page.get_by_text("Write a haiku about retinas.").click()
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    sent = stage.stub.seen[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["seed"], sent["max_tokens"], sent["stream"]) == (0, 5, 2, True)
    assert "n" not in sent


def test_an_attention_methods_knobs_are_a_form_made_of_its_schema(page, stage, see):
    page.goto("/console/chat")
    see(page.locator("#nearby-near")).to_be_hidden()
    page.get_by_label("Attention", exact=True).select_option("nearby")
    page.locator("#nearby-near").fill("3")
    page.get_by_text("Say it twice.").locator("xpath=..").get_by_role("switch").check()
    page.get_by_text("Write a haiku about retinas.").click()
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    assert stage.stub.seen[-1]["longctx"] == {"method": "nearby", "near": 3, "echo": True}
    see(page.get_by_role("button", name="Send")).to_be_visible()  # while an answer is written nothing is sent
    page.get_by_label("Attention", exact=True).select_option("dense")
    page.locator("[data-part=message]").fill("again")
    page.locator("[data-part=message]").press("Enter")
    see(page.locator(".turn").nth(3)).to_contain_text("You said:")
    assert "longctx" not in stage.stub.seen[-1]


def test_a_refused_question_is_given_back_with_the_reason(page, stage, see, complaints):
    page.goto("/console/chat")
    page.locator("#option-temperature").evaluate("slider => { slider.max = 9; slider.value = 9; }")
    page.locator("#message").fill("precious words")
    page.keyboard.press("Enter")
    see(page.get_by_role("alert")).to_contain_text("temperature: must be at most 2.")
    see(page.locator("#message")).to_have_value("precious words")
    see(page.locator(".turn")).to_have_count(0)
    assert ["400" in said for said in complaints] == [True]
    complaints.clear()


def test_a_conversation_can_run_as_a_job_and_be_cleared(page, see):
    page.goto("/console/chat")
    page.locator("#as-job").check()
    page.locator("#message").fill("patiently")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: patiently")
    see(page.locator("[data-part=usage]")).to_contain_text("3 out")
    page.get_by_role("button", name="New conversation").click()
    see(page.locator(".turn")).to_have_count(0)
    see(page.locator("[data-part=nothing]")).to_be_visible()


def test_an_answer_that_breaks_off_keeps_its_text_and_can_go_on(page, stage, see):
    page.goto("/console/chat")
    page.locator("#message").fill("please break now")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    see(alert).to_contain_text("The answer broke off")
    see(alert).to_contain_text("The replica was lost.")
    answer = page.locator(".turn").nth(1)
    see(answer.locator(".turn-text")).to_have_text("You said: please break")
    see(answer).to_contain_text("(cut off)")
    page.get_by_role("alert").get_by_role("button", name="Continue").click()
    see(answer.locator(".turn-text")).to_contain_text("You said: please breakYou said: Continue exactly")
    assert [turn["role"] for turn in stage.stub.seen[-1]["messages"]] == ["user", "assistant", "user"]
    assert stage.stub.seen[-1]["messages"][1]["content"] == "You said: please break"
    see(alert).to_be_hidden()


def test_shift_and_enter_write_a_new_line_and_nothing_is_sent_twice(page, stage, see):
    asked = len(stage.stub.seen)
    page.goto("/console/chat")
    page.locator("#message").press_sequentially("a")
    page.keyboard.press("Shift+Enter")
    page.locator("#message").press_sequentially("b")
    assert page.locator("#message").input_value() == "a\nb"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: a\nb")
    assert len(stage.stub.seen) == asked + 1


def test_what_a_model_says_is_text_and_never_markup(page, see):
    page.goto("/console/chat")
    page.locator("#message").fill("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("<img src=x")
    assert page.locator(".turn img").count() == 0
