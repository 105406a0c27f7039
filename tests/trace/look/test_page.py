"""The page as a file: its policy, its numbers, its bounds."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from look_data import StoryMaker, merge, say, text, write_dataset

from starpo_trace.cli import main
from starpo_trace.convert.manifest import read_manifest, scan_table
from starpo_trace.look.opened import open_path
from starpo_trace.look.page import write_page
from starpo_trace.look.sample import choose_trajectories, draw_sample

ROOT = Path(__file__).parents[3]


class Outline(HTMLParser):
    """Elements with their attributes, and the text that a reader sees."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.hidden = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.hidden = tag if tag in {"script", "style", "title", "noscript"} else self.hidden

    def handle_endtag(self, tag):
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, data):
        if not self.hidden:
            self.texts.append(data)

    @property
    def shown(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def html(shop, tmp_path_factory) -> str:
    output = tmp_path_factory.mktemp("page") / "page.html"
    write_page(shop, output)
    return output.read_text()


def read_data(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])


def test_the_policy_allows_one_script_and_one_style_by_hash(html):
    """Nothing else may run or load, and no element needs more than that."""
    page = Outline(html)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]

    def hash_of(content):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    assert rules == {
        "default-src": "'none'",
        "script-src": hash_of(script),
        "style-src": hash_of(style),
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert [tag for tag, _ in page.elements if tag in {"img", "link", "iframe", "object"}] == []
    names = {name for _, attributes in page.elements for name in attributes}
    assert [name for name in names if name.startswith("on") or name in {"style", "src"}] == []
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert [link for link in links if not link.startswith("#")] == []


def test_numbers_on_the_page_are_those_of_the_tables(html, shop):
    """Funnel, verdicts, rewards and row counts, read off the page and off the tables."""
    shown = Outline(html).shown
    manifest, trajectories = read_manifest(shop), scan_table(shop, "trajectories").collect()
    accounting, verdicts = manifest.accounting, manifest.usable_for
    assert f"{accounting.spans_read} spans" in shown
    assert f"{accounting.spans_used} used" in shown
    for reason, count in accounting.spans_rejected_by_reason.items():
        assert f"{count} rejected: {reason}" in shown
    assert f"{trajectories['trace_id'].n_unique()} with a trajectory" in shown
    assert f"{trajectories.height} trajectories" in shown
    assert f"{verdicts['rl']} rl · {verdicts['sft']} sft · {verdicts['none']} none" in shown
    assert f"Mean reward {trajectories['reward'].mean():g}" in shown
    assert f"{trajectories['reward'].count()} of {trajectories.height} have one" in shown
    rows = [f"{name} {count}" for name, count in manifest.counts.items()]
    assert " · ".join(rows) in shown
    assert manifest.digest in shown
    assert "accounted for" in shown


def test_counts_that_do_not_add_up_are_said(shop, tmp_path):
    """A manifest that lost spans is not shown as closed."""
    rows = {"trajectories": [{"trajectory_id": "a", "usable_for": "sft", "reasons": []}]}
    accounting = read_manifest(shop).accounting
    lost = type(accounting)(
        spans_read=9, spans_used=3, spans_rejected_by_reason={}, duplicates=1, damaged_records=2
    )
    write_dataset(tmp_path / "lost", rows, accounting=lost)
    write_page(tmp_path / "lost", tmp_path / "page.html")
    shown = Outline((tmp_path / "page.html").read_text()).shown
    assert "The counts do not add up: spans" in shown
    assert "2 damaged records" in shown


def test_every_text_is_on_the_page_once_and_whole(html, shop):
    """The shared prompt of eleven trajectories is there once; arguments are verbatim."""
    data = read_data(html)
    assert len(data["trajectories"]) == 12
    assert len(data["texts"]) == len(set(data["texts"]))
    assert '{"sku": "A7" }' in data["texts"]
    prompt = json.loads(scan_table(shop, "messages").collect()["message"][0])["parts"][0]["content"]
    assert data["texts"].count(prompt) == 1
    entries = [each for trajectory in data["trajectories"] for each in trajectory["entries"]]
    counts = read_manifest(shop).counts
    sampled = scan_table(shop, "messages").collect()["sampled_turn"].count()
    kinds = [entry["kind"] for entry in entries]
    assert kinds.count("turn") == counts["turns"]
    assert kinds.count("message") == counts["messages"] - sampled
    assert kinds.count("reward") == counts["rewards"]
    assert kinds.count("state") == counts["states"]


def test_a_sample_takes_of_each_verdict_in_turn(shop, tmp_path):
    """Of 7 rl, 4 sft and 1 none, seven are 3, 3 and 1; the page says so."""
    trajectories = scan_table(shop, "trajectories").collect()
    chosen = choose_trajectories(trajectories, 7)
    verdict = dict(trajectories.select("trajectory_id", "usable_for").iter_rows())
    verdicts = [verdict[each] for each in chosen]
    assert verdicts == ["rl", "sft", "none", "rl", "sft", "rl", "sft"]
    assert choose_trajectories(trajectories.reverse(), 7) == chosen
    sample = write_page(shop, tmp_path / "page.html", max_trajectories=7)
    page = (tmp_path / "page.html").read_text()
    assert (sample.num_shown, sample.is_whole) == (7, False)
    assert "A sample: 7 of 12" in Outline(page).shown
    assert "12 trajectories" in Outline(page).shown
    assert [each["trajectory_id"] for each in read_data(page)["trajectories"]] == chosen


def test_a_trajectory_too_large_is_named_and_not_cut(tmp_path):
    """Of three, the one above the bound is left out whole; those after it still come."""
    stories = []
    for name, size in (("small", 10), ("huge", 50_000), ("other", 10)):
        story = StoryMaker(name)
        story.message("m0", None, "user", say("user", text(name[0] * size)))
        stories.append(story.done())
    path = write_dataset(tmp_path / "sizes", merge(*stories))
    sample = draw_sample(open_path(path).scan, max_trajectories=10, max_bytes=20_000)
    assert sample.too_large == ["huge"]
    assert sample.num_shown == 2
    assert sample.payload.num_bytes < 20_000
    write_page(path, tmp_path / "page.html", max_bytes=20_000)
    shown = Outline((tmp_path / "page.html").read_text()).shown
    assert "A sample: 2 of 3" in shown
    assert "1 of those chosen did not fit" in shown


def test_the_command_writes_the_page(shop, tmp_path, capsys):
    """`show DATASET --html FILE` says what it wrote."""
    output = tmp_path / "page.html"
    assert main(["show", str(shop), "--html", str(output), "--sample", "5"]) == 0
    assert capsys.readouterr().out == f"{output}: 5 of 12 trajectories\n"
    assert output.read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--html", "page.txt"], "the name of a page ends in .html"),
        (["--html", "{shop}/page.html"], "which holds nothing but its own files"),
        (["--html", "{tmp}/no/page.html"], "cannot be written"),
        (["--html", "{shop}/manifest.json/page.html"], "manifest.json"),
        (["--html", "{tmp}/page.html", "--trajectory", "a"], "add #t=ID to its address"),
        (["--html", "{tmp}/page.html", "--sample", "-1"], "--sample -1: give 0 to 20,000"),
        (["--sample", "5"], "give --html FILE too"),
    ],
)
def test_what_cannot_be_is_refused(arguments, problem, shop, tmp_path, capsys):
    """Names, places and options, each in one line."""
    filled = [each.format(shop=shop, tmp=tmp_path) for each in arguments]
    assert main(["show", str(shop), *filled]) == 1
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(shop, tmp_path):
    """Without jinja2 the page cannot be made; the line says what to install."""
    code = (
        "import sys; sys.modules['jinja2'] = None; from starpo_trace.cli import main; "
        f"sys.exit(main(['show', {str(shop)!r}, '--html', {str(tmp_path / 'page.html')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert "pip install 'starpo[dataset]'" in done.stderr


def test_the_wheel_has_the_page_s_files(tmp_path):
    """Template, style sheet and scripts are part of the package."""
    hatchling = pytest.importorskip("hatchling.build", reason="the package hatchling is absent")
    del hatchling
    code = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    folder = ROOT / "starpo_trace" / "look"
    kinds = (".j2", ".css", ".js")
    wanted = {str(f.relative_to(ROOT)) for f in folder.rglob("*") if f.suffix in kinds}
    assert len(wanted) == 7
    assert wanted <= names


def test_a_run_without_times_shows_no_start(tmp_path):
    """Where a source has no times, starts only number the spans: no run was in 1970."""
    stories = [StoryMaker("numbered", started_ns=7), StoryMaker("timed")]
    dataset = write_dataset(tmp_path / "d", merge(*(each.done() for each in stories)))
    write_page(dataset, tmp_path / "page.html")
    data = read_data((tmp_path / "page.html").read_text())
    started = {each["trajectory_id"]: each["started_ms"] for each in data["trajectories"]}
    assert started == {"numbered": None, "timed": 1_700_000_000_000}
