"""``docs/reference/http.md``: the description of the API as Markdown."""

from collections.abc import Iterator

from service.api.outline import Operation, Outline, Row, Schema

_INTRODUCTION = """# HTTP, endpoint by endpoint

Made from the table of routes by `make reference`; nothing here is written by hand. How it all hangs together, with
examples, is told in [HTTP](../http.md); the events are in [events.md](events.md), the problems in
[problems.md](problems.md). The same as a page is at `/docs` of a running service, and as OpenAPI 3.1 at
`/openapi.json` and in [openapi.json](openapi.json).

Every answer carries `X-Request-ID`. Every `GET` has its `HEAD`. All of them may refuse a foreign origin (403) and may
meet a bug (500); these two are not repeated below."""
_EVERYWHERE = {"foreign-origin", "internal"}


def markdown(document: Schema) -> str:
    """The whole reference."""

    def link(name: str) -> str:
        return f"[`{name}`]({_elsewhere(name, document) or f'#{name.lower()}'})"

    outline = Outline(document, link)
    pieces = [_INTRODUCTION]
    for tag, about, operations in outline.groups():
        pieces.append(f"## {tag.capitalize()}\n\n{about}")
        for operation in operations:
            pieces += _operation(operation)
    pieces.append("## Shapes\n\nThe objects that are sent and answered, by name.")
    for name, about, rows in outline.schemas():
        if _elsewhere(name, document) is None:
            pieces.append(f"### `{name}`\n\n{about}".strip())
            pieces += _table("field", rows)
    return "\n\n".join(pieces) + "\n"


def _elsewhere(name: str, document: Schema) -> str | None:
    """Where a problem or an event is told of; they have references of their own."""
    if {"seq", "created_at"} <= document["components"]["schemas"][name].get("properties", {}).keys():
        return "events.md"
    return "problems.md" if name.endswith("Problem") else None


def _operation(operation: Operation) -> Iterator[str]:
    yield f"### `{operation.method} {operation.path}`"
    yield f"**{operation.summary}.** Role: `{operation.role}`."
    if operation.about:
        yield operation.about
    yield from _table("parameter", operation.parameters)
    if operation.body:
        yield f"Body: {operation.body}."
        yield from _table("field", operation.body_fields)
    rows = [
        f"| {reply.status} | {reply.about} | {reply.content} | {', '.join(f'`{name}`' for name in reply.headers)} |"
        for reply in operation.replies
    ]
    yield "\n".join(["| answer | | content | headers |", "|---|---|---|---|", *rows])
    problems = [f"{status} `{slug}`" for status, slug, _ in operation.problems if slug not in _EVERYWHERE]
    if problems:
        yield f"Problems: {', '.join(problems)}."


def _table(heading: str, rows: tuple[Row, ...] | list[Row]) -> Iterator[str]:
    if rows:
        lines = [f"| `{row.name}` | {row.kind} | {row.about.replace('|', chr(92) + '|')} |" for row in rows]
        yield "\n".join([f"| {heading} | | |", "|---|---|---|", *lines])
