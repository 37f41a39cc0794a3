"""The console's page Traffic in a real browser: shares of versions are read, set, refused and cleared."""

import json

from services.gateway.tests.browsing import MARKS, check_page
from services.gateway.tests.conftest import stage, url  # noqa: F401  # fixtures

pytestmark = MARKS

PLAN = {"percent": {"canary": 5.0}, "shadow": "next", "shadow_percent": 20.0}
TRAFFIC = {
    "services": [
        {"service": "detection", "plan": PLAN, "versions": {"": 2, "canary": 1, "next": 1}},
        {"service": "medical-seg", "plan": None, "versions": {"": 1}},
    ]
}


def test_services_of_a_gateway_are_listed_and_shares_are_set_refused_and_cleared(page, see, complaints):
    page.goto("/console/traffic")
    see(page.get_by_role("form", name="stub")).to_contain_text("stable: 1 ready replica")
    sent = []

    def answer(route):
        request = route.request
        body = request.post_data_json
        sent.append((request.method, body))
        if body and sum(body["percent"].values()) > 100:
            problem = {"status": 422, "title": "Invalid option", "detail": "Percents must be 100 at most together."}
            return route.fulfill(status=422, content_type="application/problem+json", body=json.dumps(problem))
        return route.fulfill(json={**TRAFFIC["services"][0], "plan": body})

    page.route("**/v1/admin/traffic", lambda route: route.fulfill(json=TRAFFIC))
    page.route("**/v1/admin/traffic/detection", answer)
    page.goto("/console/admin")
    page.locator("main").get_by_role("link", name="Traffic").click()
    form = page.get_by_role("form", name="detection")
    see(form).to_contain_text("canary: 1 ready replica")
    see(form).to_contain_text("The stable version answers 95 %.")
    see(form.get_by_label("Shadow")).to_have_value("next")
    see(page.get_by_role("form", name="medical-seg")).to_contain_text("There is only one version.")
    check_page(page)
    share = form.get_by_label("Version canary")
    share.fill("250")
    share.evaluate("input => { input.max = 300; }")  # the server refuses it, too
    form.get_by_role("button", name="Set", exact=True).click()
    see(page.get_by_role("alert")).to_contain_text("Percents must be 100 at most together.")
    share.fill("40")
    form.get_by_role("button", name="Set", exact=True).click()
    see(form).to_contain_text("The stable version answers 60 %.")
    assert sent[-1] == ("PUT", {"percent": {"canary": 40}, "shadow": "next", "shadow_percent": 20})
    form.get_by_role("button", name="Back to the settings").click()
    see(form).to_contain_text("All versions answer alike.")
    assert sent[-1] == ("DELETE", None)
    complaints.clear()  # the browser notes the 422
