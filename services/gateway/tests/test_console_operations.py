"""Jobs, the operators' pages and signing in (code with PKCE, exchanged by the gateway), in a real browser."""

import json
import re
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from services.gateway.tests import browsing
from services.gateway.tests.browsing import MARKS, PICTURE, check_page, choose, hasten, kept, watched
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph
from services.gateway.tests.test_gateway_keys import issuer  # noqa: F401
from tests.harness.waiting import wait_until

pytestmark = MARKS


def submit(stage, path, **request):
    job = browsing.submit(stage, path, **request)
    wait_until(lambda: stage.queue.jobs[job].finished, 10, "the job")
    return job


@pytest.fixture
def page(page):
    return hasten(page)


def test_jobs_are_searched_filtered_and_deleted_together_and_what_could_not_be_stays_told(page, stage, see, complaints):
    for body in (photograph(), b"nope"):
        submit(stage, "/v1/segment", content=body, headers={"content-type": "image/jpeg"})
    page.goto("/console/jobs")
    rows = page.locator("[data-job]:visible")
    page.get_by_label("Status").select_option("failed")
    see(rows.first).to_contain_text("The bytes are not a picture.")
    see(rows.first.get_by_role("button", name="Result")).to_be_hidden()
    see(rows.first.get_by_role("button", name="Retry")).to_be_visible()
    failed = rows.count()
    page.get_by_role("button", name="Delete finished ones shown").click()
    see(rows).to_have_count(0)
    page.get_by_label("Status").select_option("")
    assert failed >= 1
    page.get_by_label("Search").fill("segment")
    see(rows.first).to_contain_text("Segment")
    page.get_by_label("Search").fill("nothing has this")
    see(rows).to_have_count(0)
    submit(stage, "/v1/segment", content=photograph(), headers={"content-type": "image/jpeg"})
    page.goto("/console/jobs")
    page.route("**/v1/jobs/*", lambda route: route.fulfill(status=409, json={"title": "Conflict", "detail": "Busy."}))
    page.locator("[data-job]").first.wait_for()
    page.get_by_role("button", name="Delete finished ones shown").click()
    alert = page.get_by_role("alert")
    see(alert).to_contain_text("Busy.")
    with page.expect_response("**/v1/jobs?limit=500"):
        pass
    page.wait_for_timeout(200)
    see(alert).to_contain_text("Busy.")
    complaints.clear()


def test_a_job_from_elsewhere_opens_in_the_page_of_its_task_and_takes_its_image_there(page, stage, see):
    how = {"content": PICTURE["buffer"], "headers": {"content-type": "image/jpeg"}}
    job = submit(stage, "/v1/segment?include=mask&include=probability&min_area=7", **how)
    page.goto(f"/console/jobs#{job}")
    page.locator(f"[data-job={job}]").get_by_role("link", name="Open").click()
    page.wait_for_url(f"**/console/segment?job={job}")
    area = page.locator("[data-part=area]")
    see(area).to_have_text("8,245 px")
    see(page.locator("[data-part=name]")).to_have_text(f"Job {job}: add its image to see it here")
    sent = len(stage.stub.seen)
    choose(page)
    see(page.locator("[data-part=name]")).to_have_text("a.jpg, 320 × 240")
    see(area).to_have_text("8,245 px")
    assert len(stage.stub.seen) == sent
    check_page(page)


def test_a_job_of_any_task_and_a_run_of_it_open_in_their_page(page, stage, see):
    job = submit(stage, "/v1/judge", json={"prompt": "x", "count": 9})
    page.goto(f"/console/run/judge?job={job}")
    see(page.locator("fovea-result")).to_contain_text("0.1235")
    page.goto("/console/run/judge")
    page.locator("#option-prompt").fill("second")
    page.locator("#option-count").fill("4")
    page.evaluate("addEventListener('fovea-run-stored', () => (window.isStored = true))")
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator("fovea-result").wait_for()
    while not page.evaluate("window.isStored"):  # the history is written a moment after the result is shown
        page.wait_for_timeout(20)  # `wait_for_function` needs `eval`, which the pages' policy forbids
    page.goto("/runs")
    page.locator(".run-link").click()
    page.get_by_role("link", name="Open in its page").click()
    see(page.locator("#option-count")).to_have_value("4")
    see(page.locator("fovea-result")).to_contain_text("second")
    page.goto("/console/run/judge?run=gone")
    see(page.get_by_role("alert")).to_contain_text("This run is not here")


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with running(tmp_path_factory.mktemp("locked"), auth="keys") as stage:
        yield stage


@pytest.fixture
def admin(chromium, locked):
    _, text = locked.keys.add("ops", ("infer", "jobs", "admin"))
    complaints: list[str] = []
    with watched(chromium, locked.url, complaints) as page:
        hasten(page).goto("/console/admin")
        page.locator("#key").fill(text)
        page.get_by_role("button", name="Continue").click()
        page.locator("fovea-admin-services tbody tr").wait_for()
        yield page
    assert not [said for said in complaints if "401" not in said]  # a page that asks for the key is one


def test_each_section_of_operators_has_an_address_and_passes_axe(admin):
    for name in ("Services", "Replicas", "Keys", "Usage", "Audit log"):
        admin.get_by_role("tab", name=name).click()
        assert "#" in admin.url
        admin.reload()
        assert admin.get_by_role("tab", name=name).get_attribute("aria-selected") == "true"
        check_page(admin)


def test_tables_are_loaded_by_a_busy_browser_and_after_a_failure_and_each_replica_has_its_load(admin, see):
    admin.add_init_script(
        """const Observer = IntersectionObserver;
        window.IntersectionObserver = class extends Observer {
            constructor(call) { super((seen) => call([{ isIntersecting: false }, ...seen])); }
        };"""
    )
    admin.reload()
    admin.locator("fovea-admin-services tbody tr").wait_for()
    admin.route("**/readyz", lambda route: route.fulfill(body="no JSON"))
    alert = admin.locator("fovea-admin-services").get_by_role("alert")
    see(alert).to_be_visible()
    admin.unroute("**/readyz")
    see(alert).to_be_hidden()
    admin.get_by_role("tab", name="Replicas").click()
    row = admin.locator("fovea-admin-replicas tbody tr")
    see(row).to_contain_text("parrot, disc, disc-large and 2 more")
    see(row).to_contain_text("0 of 1")
    admin.locator("fovea-admin-replicas").get_by_label("Search").fill("pranet")
    see(row).to_be_hidden()


def begin_key(admin, tenant):
    """Open the form of a new key; how many keys there are, and their rows."""
    admin.get_by_role("tab", name="Keys").click()
    rows = admin.locator("fovea-admin-keys tbody tr")
    rows.first.wait_for()
    admin.get_by_text("New key", exact=True).click()
    admin.get_by_label("Tenant", exact=True).fill(tenant)
    return rows.count(), rows


def test_an_operator_makes_rotates_and_revokes_keys_and_reads_the_log(admin, locked, see):
    before, rows = begin_key(admin, "lab")
    admin.get_by_label("metrics").check()
    admin.get_by_text("Limits and expiry").click()
    for limit, value in (("Requests", "1200"), ("Tokens", "5000")):
        admin.get_by_label(f"{limit} a minute").fill(value)
    admin.get_by_role("button", name="Make a key").click()
    see(rows).to_have_count(before + 1)
    made = admin.locator("[data-part=made] code").last.inner_text()
    assert httpx2.get(f"{locked.url}/v1/models", headers={"authorization": f"Bearer {made}"}).status_code == 200
    for words in ("infer, jobs, metrics", "0 of 1,200 requests per minute", "0 of 5,000 tokens per minute"):
        see(rows.last).to_contain_text(words)
    rows.last.get_by_role("button", name="Rotate").click()
    see(rows).to_have_count(before + 2)
    rows.last.get_by_role("button", name="Revoke").click()
    rows.last.get_by_role("button", name="Revoke for good").click()
    see(rows).to_have_count(before + 1)
    admin.get_by_role("tab", name="Audit log").click()
    for words in ("key revoked", "tenant: lab"):
        see(admin.locator("fovea-admin-audit tbody tr").first).to_contain_text(words)


def test_a_double_click_makes_one_key_and_revokes_none(admin, see):
    before, rows = begin_key(admin, "twice")
    twice = rows.filter(has_text="twice")
    admin.get_by_role("button", name="Make a key").dblclick()
    see(twice).to_have_count(1)
    twice.get_by_role("button", name="Rotate").dblclick()
    see(twice).to_have_count(2)
    twice.last.get_by_role("button", name="Revoke").dblclick()
    see(twice.get_by_role("button", name="Revoke for good")).to_have_count(1)
    admin.wait_for_timeout(300)
    assert rows.count() == before + 2


def test_the_usage_of_the_days_chosen_last_is_shown(admin, see):
    held = []

    def answer(route, count):
        row = {"day": "2026-11-01", "tenant": "lab", "model": "disc", "requests": count, "tokens_in": 0}
        route.fulfill(json={"usage": [{**row, "tokens_out": 0, "pictures": 0, "cpu_seconds": 1}]})

    admin.get_by_role("tab", name="Usage").click()
    part = admin.locator("fovea-admin-usage")
    part.locator("[data-part=requests]").get_by_text(re.compile("^[0-9]")).wait_for()
    admin.route("**/v1/usage?*", lambda route: answer(route, 7) if held else held.append(route))
    part.get_by_label("Days").select_option("90")
    wait_until(lambda: admin.wait_for_timeout(20) or held, 10, "the request")
    begun = datetime.now(UTC)
    with admin.expect_request("**/v1/usage?*") as seven:
        part.get_by_label("Days").select_option("7")
    first = {f"{day - timedelta(6):%Y-%m-%d}" for day in (begun, datetime.now(UTC))}  # the seventh day is today
    assert seven.value.url.rpartition("since=")[2] in first
    see(part.locator("[data-part=requests]")).to_have_text("7")
    answer(held[0], 90)
    admin.wait_for_timeout(300)
    see(part.locator("[data-part=requests]")).to_have_text("7")


def test_usage_is_a_chart_with_sums_that_follow_the_search(admin, see):
    facts = {"tokens_in": 0, "tokens_out": 0, "pictures": 1, "cpu_seconds": 1.5}
    days = (("2026-11-01", "lab", 3), ("2026-11-02", "lab", 5), ("2026-11-02", "clinic", 40))
    answer = {"usage": [
        {"day": day, "tenant": tenant, "model": "disc", "requests": count, **facts} for day, tenant, count in days
    ]}  # fmt: skip
    admin.route("**/v1/usage?*", lambda route: route.fulfill(json=answer))
    admin.get_by_role("tab", name="Usage").click()
    part = admin.locator("fovea-admin-usage")
    see(part.locator("[data-part=requests]")).to_have_text("48")
    see(part.locator("rect title").last).to_have_text("2026-11-02: 45")
    part.get_by_label("Search").fill("lab")
    see(part.locator("[data-part=requests]")).to_have_text("8")
    assert kept(admin, "CSV", "usage.csv").decode().splitlines()[1].startswith("2026-11-02,lab,disc,5")
    check_page(admin)
    admin.set_viewport_size({"width": 360, "height": 800})
    part.get_by_label("Search").fill("")
    see(part.locator("[data-part=requests]")).to_have_text("48")
    scale = "svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
    assert part.locator("[data-part=chart] svg").evaluate(scale) > 0.95


AT = 1_800_000_000  # a time, seconds
RUNNING = {"id": "a", "status": "running", "progress": 0.25, "started": AT}
ENDED = [{"service": "s", "status": "succeeded", "finished": AT - ago} for ago in (30, 20, 10)]
QUEUED = {"id": "q", "service": "s", "status": "queued", "position": 2}


ESTIMATES = [
    ([(RUNNING, 10)], [], 30),  # a quarter in ten seconds
    ([(RUNNING, 10), (RUNNING, 25)], [], 15),  # it counts down between two steps
    ([(RUNNING, 10), (RUNNING, 45)], [], None),  # and is silent when the job takes longer than expected
    ([(RUNNING, 10), ({**RUNNING, "progress": 0.5}, 50)], [], 50),
    ([(RUNNING, -500)], [], None),  # a clock that is wrong
    ([({**RUNNING, "progress": 0.02}, 86_400)], [], None),  # two months
    *(([(RUNNING | facts, after)], [], None)
      for facts, after in (({"progress": 0.001}, 600), ({}, 1), ({"progress": 1}, 60), ({"started": None}, 60))),
    ([(QUEUED, 0)], ENDED, 30),  # the third place at ten seconds a job
    *(([(QUEUED | facts, after)], ENDED, None)
      for facts, after in (({"position": None}, 0), ({"service": "other"}, 0), ({}, 7200))),
    ([(QUEUED, 0)], ENDED[:2], None),
]  # fmt: skip
"""Sightings of a job, each so many seconds after `AT`; other jobs; the estimate of the last sighting in seconds."""


def test_the_time_that_a_job_takes_is_told_where_it_can_be_known_by_list_and_tray(page, see):
    def dated(one):
        times = {name: one[name] for name in ("started", "finished") if one.get(name)}
        return one | {name: datetime.fromtimestamp(at, UTC).isoformat() for name, at in times.items()}

    page.goto("/console/jobs")
    cases = [
        [[[dated(job) | {"id": f"{place}"}, (AT + after) * 1000] for job, after in sightings], [*map(dated, others)]]
        for place, (sightings, others, _) in enumerate(ESTIMATES)
    ]
    found = page.evaluate(
        """async cases => {
            const { estimateEnd, estimateStart } = await import('/console/static/js/eta.js');
            const estimate = (others, [job, now]) => estimateEnd(job, now) ?? estimateStart(job, others, now);
            return cases.map(([steps, others]) => steps.map(step => estimate(others, step)).at(-1));
        }""",
        cases,
    )
    assert found == [told for *_, told in ESTIMATES]
    began = f"{datetime.now(UTC) - timedelta(minutes=1):%FT%TZ}"
    facts = {"path": "/v1/segment", "service": "s", "attempts": 1, "dead": False, "note": None, "position": None}
    job = facts | {"id": "a", "status": "running", "progress": 0.25, "created": began, "started": began}
    page.route("**/v1/jobs?*", lambda route: route.fulfill(json={"jobs": [job]}))
    events = f"data: {json.dumps(job)}\n\n"
    page.route("**/v1/jobs/a/events", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    page.goto("/console/jobs")
    left = r"about (2 min 5\d|3 min 0\d) s left"
    see(page.locator("[data-job=a]")).to_contain_text(re.compile(f"Running · 25 % · {left}"))
    page.get_by_role("button", name="Jobs").click()
    see(page.locator(".tray-job")).to_contain_text(re.compile(f"Running · {left}"))


@pytest.fixture(scope="module")
def signing(tmp_path_factory, issuer):  # noqa: F811
    settings = {"auth": "keys", "oidc_issuer": issuer.url, "oidc_client_id": "fovea-console"}
    with running(tmp_path_factory.mktemp("signing"), **settings) as made:
        yield made


@pytest.fixture
def reader(chromium, signing):
    complaints: list[str] = []
    with watched(chromium, signing.url, complaints) as page:
        yield page
    assert not [said for said in complaints if "401" not in said]  # the page that asks for a key is one


def test_a_reader_signs_in_and_sees_the_page_that_was_asked_for_or_why_the_sign_in_failed(reader, see):
    for query, words in (
        ("error=access_denied&error_description=Nobody%20may", "The identity provider refused: Nobody may."),
        ("code=code-1&state=forged", "This sign-in was not started in this tab"),
    ):
        reader.goto(f"/console/sign-in?{query}")
        see(reader.locator("[data-part=message]")).to_contain_text(words)
        assert reader.url.endswith("/console/sign-in")
        assert reader.evaluate("sessionStorage.getItem('fovea-key')") is None
    reader.goto("/console/models/disc")
    check_page(reader)
    reader.get_by_role("button", name="Sign in with your organisation").click()
    see(reader.get_by_role("heading", level=1)).to_have_text("disc")
    assert reader.url.endswith("/console/models/disc")
    stored = reader.evaluate("[sessionStorage.getItem('fovea-key'), localStorage.getItem('fovea-key')]")
    assert (stored[0].count("."), stored[1]) == (2, None)
    reader.get_by_role("button", name="Account").click()
    see(reader.locator("#account dl")).to_contain_text("alice")
    reader.get_by_role("button", name="Sign out").click()
    see(reader.get_by_role("button", name="Sign in with your organisation")).to_be_visible()


def test_codes_are_exchanged_only_as_the_provider_allows(signing, issuer, tmp_path):  # noqa: F811
    address = f"{signing.url}/console/sign-in"
    sent = httpx2.get(f"{address}/start", params={"state": "s", "challenge": "c", "scheme": "http"})
    start = f"{issuer.url}/authorization?response_type=code&client_id=fovea-console&"
    assert (sent.status_code, sent.headers["location"].startswith(start)) == (302, True)
    refused = httpx2.post(f"{address}/token?scheme=http", data={"code": "code-1", "verifier": "other"})
    assert (refused.status_code, "invalid_grant" in refused.text) == (401, True)
    assert httpx2.get(f"{address}/start?scheme=javascript").status_code == 422
    with running(tmp_path / "gone", auth="keys", oidc_issuer="http://127.0.0.1:9", oidc_client_id="x") as other:
        assert httpx2.get(f"{other.url}/console/sign-in/start?scheme=http").status_code == 503
    with running(tmp_path / "plain", auth="keys", oidc_issuer=issuer.url) as plain:
        assert httpx2.get(f"{plain.url}/console/sign-in").status_code == 404
        assert not re.search("Sign in", httpx2.get(plain.url).text)
