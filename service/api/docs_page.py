"""The page at ``/docs``: the description of the API for people, whole in one answer, without a script."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

from service.api.outline import Operation, Outline, Row, Schema

STYLE = (Path(__file__).resolve().parent.parent / "console" / "docs.css").read_text("utf-8")


def page(document: Schema) -> str:
    """The whole page."""
    outline = Outline(document, lambda name: f"[{name}](#{name})")
    groups = list(outline.groups())
    info = document["info"]
    menu = "".join(
        f"<h2><a href='#{tag}'>{tag}</a></h2><ul>"
        + "".join(f"<li><a href='#{one.name}'>{_method(one)} {_text(one.summary)}</a>" for one in operations)
        + "</ul>"
        for tag, _, operations in groups
    )
    sections = "".join(
        f"<section><h2 id='{tag}'>{tag.capitalize()}</h2><p>{_text(about)}</p>"
        + "".join(map(_operation, operations))
        + "</section>"
        for tag, about, operations in groups
    )
    shapes = "".join(
        f"<article class=shape id='{name}'><h3>{name}</h3>{_paragraphs(about)}{_table(rows)}</article>"
        for name, about, rows in outline.schemas()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(info['title'])}: the API</title><style>{STYLE}</style>"
        f"<nav aria-label=Contents><p class=brand><a href='/'>{html.escape(info['title'])}</a>"
        f" <small>{html.escape(info['version'])}</small></p>{menu}<h2><a href='#shapes'>shapes</a></h2></nav>"
        f"<main><header><h1>The API</h1>{_paragraphs(info['description'])}"
        "<p>For programs: <a href='/openapi.json'>openapi.json</a> (OpenAPI 3.1).</header>"
        f"{sections}<section><h2 id=shapes>Shapes</h2>"
        f"<p>The objects that are sent and answered, the events and the problems, by name.{shapes}</section>"
        "</main></html>"
    )


def _operation(operation: Operation) -> str:
    replies = "".join(
        f"<tr><th><span class='status s{reply.status[0]}'>{reply.status}</span><td>{_text(reply.about)}"
        f"<td>{_text(reply.content)}"
        + "".join(f"<br><small>header <code>{name}</code></small>" for name in reply.headers)
        for reply in operation.replies
    )
    problems = " ".join(
        f"<a class=problem href='#{name}'><b>{status}</b> {slug}</a>" for status, slug, name in operation.problems
    )
    path = re.sub(r"(\{\w+\})", r"<i>\1</i>", html.escape(operation.path))
    return (
        f"<article id='{operation.name}'><h3>{_text(operation.summary)}"
        f" <a class=anchor href='#{operation.name}' aria-label='Link to this'>#</a></h3>"
        f"<p class=path>{_method(operation)} <code>{path}</code> <span class=role>{operation.role}</span></p>"
        f"{_paragraphs(operation.about)}<pre>{html.escape(operation.example)}</pre>"
        + _part("Parameters", _table(operation.parameters))
        + _part("Body", (f"<p>{_text(operation.body)}" if operation.body else "") + _table(operation.body_fields))
        + _part("Answers", f"<table>{replies}</table>")
        + _part("Problems", f"<p class=problems>{problems}")
        + "</article>"
    )


def _part(heading: str, content: str) -> str:
    return f"<h4>{heading}</h4>{content}" if content else ""


def _table(rows: Iterable[Row]) -> str:
    lines = "".join(
        f"<tr><th><code>{html.escape(row.name)}</code>{'<b title=required>*</b>' * row.required}"
        f"<td class=kind>{_text(row.kind)}<td>{_text(row.about)}"
        for row in rows
    )
    return f"<table>{lines}</table>" if lines else ""


def _method(operation: Operation) -> str:
    return f"<span class='method {operation.method.lower()}'>{operation.method}</span>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(piece)}</p>" for piece in text.split("\n\n") if piece)


def _text(text: str) -> str:
    """Text with backticks and links as HTML."""
    safe = html.escape(text)
    linked = re.sub(r"\[(\w+)\]\((#\w+)\)", r"<a href='\2'><code>\1</code></a>", safe)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", linked)
