"""The page at /docs: every route, its parameters and answers, made of the OpenAPI description; it loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ info.title }} {{ info.version }}: HTTP interface</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --faint: #8881; --accent: #0a7; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; font-family: ui-monospace, monospace; }
h2 b { color: var(--accent); display: inline-block; min-width: 4.5rem; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .92rem; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td:first-child { font-family: ui-monospace, monospace; white-space: nowrap; width: 12rem; }
code { background: var(--faint); padding: .1rem .3rem; border-radius: .2rem; }
</style></head><body>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>Research use only. Every route but <code>/healthz</code> and this page asks for the header
<code>Authorization: Bearer TOKEN</code>, where tokens are in use. A refusal is one JSON object,
<code>{"error": "what is wrong and what to do"}</code>. For programs: <code>/openapi.json</code>.</p>
{% for path, methods in paths.items() %}{% for method, route in methods.items() %}
<h2><b>{{ method | upper }}</b>{{ path }}</h2>
<p>{{ route.description }}</p>
{% if route.parameters or route.requestBody %}
<table><tr><th>takes</th><th></th></tr>
{% for one in route.parameters %}
<tr><td>{{ one.name }}</td><td>{{ one.in }}{{ ", required" if one.required else ", optional" }}</td></tr>
{% endfor %}
{% if route.requestBody %}
<tr><td>body</td>
<td>{{ route.requestBody.content | join(", ") }}{{ "" if route.requestBody.required else ", optional" }}</td></tr>
{% endif %}
</table>
{% endif %}
<table><tr><th>answers</th><th></th></tr>
{% for code, answer in route.responses | dictsort %}
<tr><td>{{ code }}</td><td>{{ answer.description }}</td></tr>
{% endfor %}
</table>
{% endfor %}{% endfor %}
</body></html>
"""


def reference_page(schema: Mapping[str, Any]) -> str:
    """The page of an OpenAPI description."""
    return Environment(autoescape=True, trim_blocks=True).from_string(PAGE).render(**schema)
