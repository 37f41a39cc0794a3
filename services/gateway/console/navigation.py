"""Navigation of the console: every page in groups, with the pages of plug-ins and of the tasks that are served."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fovea.api.model import sort_tasks, title_task
from services.gateway.console.page import Page

_ALWAYS = ("segment", "detect", "restore", "classify", "chat", "judge", "probe")
"""Tasks whose pages are shown whatever is served."""

_GROUP_OF_TASK = {
    **dict.fromkeys(("segment", "detect", "restore", "classify", "actions", "scanpath", "plan"), "Images"),
    **dict.fromkeys(("chat", "complete", "embed", "rerank", "score"), "Language"),
    "judge": "Evaluate",
    "probe": "Interpret",
}

_PLATFORM = (
    ("runs", "Runs", "/runs", "play"),
    ("jobs", "Jobs", "/console/jobs", "jobs"),
    ("models", "Models", "/console/models", "models"),
    ("admin", "Admin", "/console/admin", "key"),
    ("", "API reference", "/docs", "api"),
)


@dataclass(frozen=True, slots=True)
class NavLink:
    """A link of the navigation: the page's name, its words, URL and icon."""

    name: str
    title: str
    href: str
    icon: str


def build_navigation(tasks: Iterable[str], pages: Mapping[str, Page]) -> dict[str, list[NavLink]]:
    """Build the navigation by group, with the served tasks and the pages of plug-ins by slug.

    Tasks with a page of their own are listed also where they are not served.
    """
    groups: dict[str, list[NavLink]] = {"Images": [], "Language": [], "Evaluate": [], "Interpret": []}
    for task in sort_tasks({*_ALWAYS, *tasks} - {"infer"}):
        link = NavLink(task, title_task(task), find_page(task), _choose_icon(task))
        groups.setdefault(_GROUP_OF_TASK.get(task, "More tasks"), []).append(link)
    for slug, page in pages.items():
        link = NavLink(slug, title_task(slug), f"/console/{slug}", page.icon)
        groups.setdefault(_GROUP_OF_TASK.get(page.under or "", page.group), []).append(link)
    *platform, reference = (NavLink(*entry) for entry in _PLATFORM)
    groups["Platform"] = [*platform, *groups.pop("Platform", ()), reference]
    return {title: links for title, links in groups.items() if links}


def find_page(task: str) -> str:
    """Find the URL of a task's page."""
    return f"/console/{task}" if task in _ALWAYS else f"/console/run/{task}"


def _choose_icon(task: str) -> str:
    if task in {"restore", "classify"}:
        return "picture" if task == "restore" else "check"
    return task if task in _ALWAYS else "run"
