"""The page in Chromium, from a file: what a reader does, and what hostile data cannot do."""

import json
import time

import pytest
from look_data import StoryMaker, merge, say, text, write_dataset

from starpo_trace.look.page import write_page


@pytest.fixture(scope="module")
def page(shop, tmp_path_factory) -> str:
    output = tmp_path_factory.mktemp("page") / "page.html"
    write_page(shop, output)
    return output.as_uri()


def visit(browser, address: str) -> None:
    """Open an address afresh, also when only its hash differs from the last one."""
    browser.get("about:blank")
    for name in ("browser", "performance"):
        browser.get_log(name)
    browser.get(address)


def find(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def texts(browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
    return browser.execute_script(script, selector)


def click(browser, selector: str) -> None:
    """Click the first of these once nothing lies over it and nothing moves."""
    element = find(browser, selector)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    script = """
      const box = arguments[0].getBoundingClientRect(), done = arguments[1];
      requestAnimationFrame(() => requestAnimationFrame(() => {
        const now = arguments[0].getBoundingClientRect();
        const top = document.elementFromPoint(now.x + now.width / 2, now.y + now.height / 2);
        done(now.y === box.y && arguments[0].contains(top));
      }));"""
    wait_for(lambda: browser.execute_async_script(script, element))
    element.click()


def press(browser, keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def wait_for(holds) -> None:
    """Until `holds()`, at most five seconds."""
    for _ in range(100):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("what was waited for did not happen")


def choose(browser, name: str, label: str) -> None:
    form = find(browser, "#filters")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", form)
    for option in find(browser, f"#filters [name={name}] option"):
        if option.text == label:
            option.click()
            return
    pytest.fail(f"no option {label}")


def list_ids(browser) -> set[str]:
    return set(
        browser.execute_script(
            "return [...document.querySelectorAll('#list a')].map((a) => a.title)"
        )
    )


def test_filters_and_search(browser, page):
    """Each filter leaves what its count says; search finds ids, tasks and recorded text."""
    visit(browser, page)
    assert len(list_ids(browser)) == 12
    choose(browser, "cohort", "refunds (3)")
    assert list_ids(browser) == {"refund-3/0", "refund-3/1", "refund-3/2"}
    choose(browser, "reason", "unended (1)")
    assert list_ids(browser) == {"refund-3/0"}
    click(browser, "#filters [type=reset]")
    wait_for(lambda: len(list_ids(browser)) == 12)
    choose(browser, "cohort", "not named (1)")
    assert list_ids(browser) == {"empty"}
    click(browser, "#filters [type=reset]")
    wait_for(lambda: len(list_ids(browser)) == 12)
    choose(browser, "policy_id", "shop-7b@1 (4)")
    choose(browser, "split", "test (2)")
    assert list_ids(browser) == {"lookup-9/1"}
    click(browser, "#filters [type=reset]")
    wait_for(lambda: len(list_ids(browser)) == 12)
    find(browser, "#filters [name=low]")[0].send_keys("0.5")
    assert len(list_ids(browser)) == 6
    find(browser, "#filters [name=low]")[0].clear()
    find(browser, "#filters [name=search]")[0].send_keys("LASTS longer")
    assert list_ids(browser) == {"branches"}
    assert texts(browser, "#found") == ["1 of 12 on this page"]


def test_a_task_leads_to_its_attempts(browser, page):
    """The name of a task in the table of tasks filters by it alone."""
    visit(browser, page)
    click(browser, "#groups summary")
    click(browser, "#groups [data-task=hello] button")
    assert list_ids(browser) == {"hello/0"}


def test_order(browser, page):
    """By task and attempt; the best reward first, those without one last."""
    visit(browser, page)
    choose(browser, "sort", "Reward, best first")
    titles = "return [...document.querySelectorAll('#list a')].map((a) => a.title)"
    assert set(browser.execute_script(titles)[-2:]) == {"hello/0", "empty"}
    choose(browser, "sort", "Task")
    assert browser.execute_script(titles)[:2] == ["branches", "hello/0"]


def test_keys(browser, page):
    """j and k walk the list, n and p the steps, b the branches, / leads to the search."""
    visit(browser, page)
    choose(browser, "sort", "Task")
    click(browser, "h1")
    browser.execute_script("document.activeElement.blur()")
    press(browser, "j")
    wait_for(lambda: texts(browser, "#story > h3") == ["compare"])
    press(browser, "nn")
    assert texts(browser, ".entry.here .title a") == ["#2"]
    press(browser, "p")
    assert texts(browser, ".entry.here .title a") == ["#1"]
    press(browser, "b")
    assert texts(browser, ".entry.here .title a") == ["#4"]
    press(browser, "j")
    wait_for(lambda: texts(browser, "#story > h3") == ["hello"])
    press(browser, "k")
    wait_for(lambda: texts(browser, "#story > h3") == ["compare"])
    press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("name") == "search"
    press(browser, "j")
    assert browser.switch_to.active_element.get_attribute("value") == "j"


def test_deep_links(browser, page):
    """An id with a slash, escaped or not, a step of it, a bare id, one that is not on the page."""
    visit(browser, f"{page}#t=stock-a7%2F1")
    assert texts(browser, "#story > .id") == ["stock-a7/1"]
    assert [each.get_attribute("title") for each in find(browser, "#list [aria-current]")] == [
        "stock-a7/1"
    ]
    visit(browser, f"{page}#t=stock-a7/1")
    assert texts(browser, "#story > .id") == ["stock-a7/1"]
    visit(browser, f"{page}#t=stock-a7/1/2")
    assert texts(browser, "#story > .id") == ["stock-a7/1"]
    assert texts(browser, ".entry.here .title a") == ["#2"]
    visit(browser, f"{page}#t=branches/10")
    assert texts(browser, ".entry.here .title a") == ["#10"]
    visit(browser, f"{page}#branches")
    assert texts(browser, "#story > .id") == ["branches"]
    visit(browser, f"{page}#t=<img%20src=x>")
    assert "This page has no trajectory <img src=x>" in texts(browser, "#story .empty")[0]
    visit(browser, f"{page}#funnel")
    assert texts(browser, "#story .empty") == ["Choose a trajectory, or press j."]


def test_one_trajectory_as_steps(browser, page):
    """State, thinking, action with verbatim arguments, observation, reward where it was given."""
    visit(browser, f"{page}#t=stock-a7%2F0")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.entry')].map((e) => [e.classList[1],"
        "[...e.querySelectorAll('.block')].map((b) => b.firstChild.textContent + ': '"
        " + b.querySelector('.words').textContent)])"
    )
    assert [kind for kind, _ in shown] == [
        *("message", "message", "state", "turn", "reward", "message", "turn", "reward"),
    ]
    assert shown[3][1] == ["thinks: I should look it up.", 'calls: {"sku": "A7" }']
    assert shown[5][1] == ['sees: {"A7": 3}']
    assert shown[7][1] == ["why: the order went through"]
    assert texts(browser, ".entry.reward strong") == ["looked up = 0.25", "solved = 1"]
    assert "reward 0.25" in texts(browser, ".entry.turn .title")[0]
    assert texts(browser, ".fold") == ["Show all 1,759 characters"]
    whole = browser.execute_script("return document.querySelector('.words.folded').textContent")
    assert len(whole) == 1759
    click(browser, ".fold")
    assert find(browser, ".words.folded") == []


def test_branches_are_drawn_where_they_leave(browser, page):
    """Three lines, one curve from the second entry; a click on a mark leads to its step."""
    visit(browser, f"{page}#t=branches")
    assert texts(browser, ".fork")[0] == "Branch 2 begins a history of its own"
    assert texts(browser, ".fork")[1] == "back on branch 1"
    assert texts(browser, ".fork")[2].startswith("Branch 3 leaves branch 1 after #2 user")
    assert len(find(browser, ".map g")) == 3
    curves = [path.get_attribute("d") for path in find(browser, ".map path.line")]
    second = find(browser, '.map [data-entry="1"]')[0]
    start = f"M{second.get_attribute('cx')} {second.get_attribute('cy')}C"
    assert sum(curve.startswith(start) for curve in curves) == 1
    assert len(find(browser, ".map [data-entry]")) == 15
    assert len(find(browser, ".map .failed")) == 1
    click(browser, '.map [data-entry="9"]')
    wait_for(lambda: texts(browser, ".entry.here .title a") == ["#10"])


def test_without_a_script_the_numbers_and_a_list_are_there(browser, page):
    """Funnel and distributions need no script; the trajectories are a table."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page)
        assert len(find(browser, "noscript tbody tr")) == 12
        assert "93 used" in find(browser, "#funnel")[0].text
        assert not find(browser, "#browser")[0].is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_window(browser, page, width):
    """At both widths the page scrolls down only, and each control has a name."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        visit(browser, f"{page}#t=branches")
        shown, whole = browser.execute_script(
            "const e = document.documentElement; return [e.clientWidth, e.scrollWidth]"
        )
        assert shown == whole
        long = "/a/very-long-folder/of-a-source/" * 3
        num_lines = browser.execute_script(
            "const fact = [...document.querySelectorAll('.facts div')].pop();"
            "fact.querySelector('dd').textContent = arguments[0];"
            "const name = document.createRange();"
            "name.selectNodeContents(fact.querySelector('dt'));"
            "return name.getClientRects().length",
            long,
        )
        assert num_lines == 1  # a fact's name is never broken, however long the fact
        for control in find(browser, "#filters input, #filters select, #filters button, #list a"):
            assert control.accessible_name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def make_payloads() -> list[str]:
    """A hundred ways to become markup, script or a request."""
    acts = ["window.hit=1", "alert(1)", "fetch('http://127.0.0.1:9/x')", "document.title='hit'"]
    forms = [
        "<script>{}</script>",
        "</script><script>{}</script>",
        "<!--<script>{}//--></script>",
        '<img src=x onerror="{}">',
        '<svg onload="{}"></svg>',
        '</style><svg/onload="{}">',
        '" onmouseover="{}" autofocus onfocus="{}" x="',
        "' onfocus='{}' autofocus tabindex='1",
        '<a href="javascript:{}">x</a>',
        "javascript:{}",
        '<iframe srcdoc="<script>{}</script>"></iframe>',
        '<details open ontoggle="{}">x</details>',
        '<body onload="{}">',
        "<math><mtext></table><script>{}</script>",
        "</title><script>{}</script>",
        '</noscript><img src=x onerror="{}">',
        "<template><script>{}</script></template>",
        "{{{{ {} }}}}{{% if 1 %}}{}{{% endif %}}",
        '<video><source onerror="{}"></video>',
        "\u2028{}\u2029//",
        "]]><script>{}</script>",
        "\\u003cscript>{}\\u003c/script>",
        "<base href='http://127.0.0.1:9/'><script src=x>{}</script>",
        '<meta http-equiv=refresh content="0;url=javascript:{}">',
        "<form action=http://127.0.0.1:9/><button formaction='javascript:{}'>x</button></form>",
    ]
    return [form.format(act, act) for form in forms for act in acts]


def plant(payload: str, number: int) -> dict[str, list[dict]]:
    """A trajectory with the payload in every field of text."""
    call = {"id": payload, "name": payload, "arguments": payload}
    columns = ("task_id", "policy_id", "cohort", "split", "end", "environment_name", "agent_name")
    story = StoryMaker(
        f"{number:03d}{payload}",
        **dict.fromkeys((*columns, "environment_version", "conversation_id", "source"), payload),
        trace_id=f"{number}{payload}",
        reasons=[payload],
        reward=number / 100,
        usable_for=("rl", "sft", "none")[number % 3],
    )
    parts = [text(payload), {"type": payload, "x": payload}, {"type": "tool_call", **call}]
    story.message("m0", None, payload, say(payload, *parts, name=payload))
    story.turn(
        0, "m0", "m1", text=payload, reasoning=payload, tool_calls=[call], error=payload,
        outcome=payload, model=payload, step_kind=payload, finish_reason=payload,
        tool_definitions=payload, token_provenance=payload, logprob_provenance=payload,
    )  # fmt: skip
    story.message("m2", "m1", "tool", payload)
    story.state(0, payload, name=payload)
    story.reward(
        0.5, name=payload, scope=payload, kind=payload, source=payload, explanation=payload,
        judge_id=payload, signature=payload, key_id=payload, trusted=False, turn=0,
        untrusted_because=payload,
    )  # fmt: skip
    rows = story.done()
    rows["rejected"] = [
        dict.fromkeys(("source", "trace_id", "span_id", "name", "scope", "reason"), payload)
    ]
    return rows


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    payloads = make_payloads()
    rows = merge(*(plant(payload, number) for number, payload in enumerate(payloads)))
    folder = tmp_path_factory.mktemp("hostile")
    sources = [{"path": each, "bytes": 1, "blake2b": each} for each in payloads]
    name = "<img src=x onerror=alert(1)>"
    path = write_dataset(
        folder / name, rows, sources=sources, parameters={each: each for each in payloads}
    )
    write_page(path, folder / "page.html")
    return (folder / "page.html").as_uri()


def test_a_hundred_payloads_in_every_field_do_nothing(browser, hostile):
    """No dialog, no request, no element, no violation of the policy, over each trajectory opened."""
    from selenium.common.exceptions import NoAlertPresentException

    assert len(set(make_payloads())) == 100
    visit(browser, hostile)
    script = """
      const done = arguments[0], seen = new Set();
      document.addEventListener("securitypolicyviolation", (e) => seen.add(`policy ${e.violatedDirective}`));
      const links = [...document.querySelectorAll("#list a")];
      const step = (i) => {
        for (const each of document.querySelectorAll("main *, head *")) {
          if (/^(script|img|iframe|video|form|base|math|template|object|embed|link|animate)$/i.test(each.localName) && each.id !== "filters") seen.add(`element ${each.localName}`);
          for (const a of each.attributes) {
            if (/^on|^style$|^src/i.test(a.name)) seen.add(`attribute ${a.name}`);
            if (a.name === "href" && !a.value.startsWith("#")) seen.add(`link ${a.value}`);
          }
        }
        if (i === links.length) { done([links.length, [...seen], window.hit ?? null, document.title]); return; }
        links[i].click();
        setTimeout(() => { document.querySelectorAll("#story button, #story summary").forEach((b) => b.click()); setTimeout(() => step(i + 1)); });
      };
      step(0);
    """
    browser.set_script_timeout(120)
    num_opened, seen, hit, title = browser.execute_async_script(script)
    assert (num_opened, seen, hit) == (100, [], None)
    assert title == "<img src=x onerror=alert(1)> · trajectories"
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert
    messages = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    requests = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert [url.split("#")[0] for url in requests] == [hostile]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3


def test_payloads_are_shown_as_what_they_are(browser, hostile):
    """Each payload can be read in full where it was planted."""
    visit(browser, hostile)
    payload = make_payloads()[0]
    find(browser, "#filters [name=search]")[0].send_keys(f"000{payload}")
    wait_for(lambda: len(list_ids(browser)) == 1)
    click(browser, "#list a")
    wait_for(lambda: texts(browser, "#story > h3") == [payload])
    assert texts(browser, "#story > .id") == [f"000{payload}"]
    assert texts(browser, ".entry.turn .block.thinking .words") == [payload]
    assert texts(browser, ".entry.turn .block.call .words") == [payload]
    assert texts(browser, ".entry.turn .block.error .words") == [payload]


def test_hidden_characters_are_seen(browser, tmp_path):
    """A direction override and an escape sequence in a tool's name and a text."""
    story = StoryMaker("odd\u202ename", task_id="t\u2066ask")
    story.message("m0", None, "user", say("user", text("pay\u202e001 oruE\x1b[2J")))
    path = write_dataset(tmp_path / "odd", story.done())
    write_page(path, tmp_path / "page.html")
    visit(browser, (tmp_path / "page.html").as_uri())
    click(browser, "#list a")
    wait_for(lambda: texts(browser, ".entry .words") == ["pay⟨U+202E⟩001 oruE␛[2J"])
    assert texts(browser, "#story > .id") == ["odd⟨U+202E⟩name"]
    assert "\u202e" not in browser.page_source
