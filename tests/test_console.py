"""The page at `/`: served under a policy that lets no foreign script run, and made so that it needs none."""

import re

import httpx

from service.api.pages import CONSOLE
from tests.conftest import Service


def test_the_page_and_its_script_are_served(service: Service) -> None:
    """The policy forbids inline scripts and other origins, and all that the page names is there."""
    page = httpx.get(f"{service.url}/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    sources = re.findall(r"<script src=\"([^\"]+)\"></script>", page.text)
    assert page.text.count("<script") == len(sources) == 1
    script = httpx.get(f"{service.url}{sources[0]}")
    assert script.status_code == 200
    assert script.headers["content-type"].startswith("text/javascript")


def test_what_engines_wrote_is_text() -> None:
    """No way from a string to markup or code in the script, and no handler in the page."""
    script, page = (CONSOLE / "console.js").read_text(), (CONSOLE / "index.html").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in script
    assert not re.search(r"\son[a-z]+=|javascript:", page)


def test_every_element_that_the_script_asks_for_is_on_the_page() -> None:
    script, page = (CONSOLE / "console.js").read_text(), (CONSOLE / "index.html").read_text()
    asked = set(re.findall(r'\$\("([a-z]+)"\)', script))
    assert asked
    assert asked <= set(re.findall(r'id="([a-z]+)"', page))
