"""Names, places, values and JSON that nobody should believe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

from hostile_case import EITHER, PICTURE, PROMPT, REFUSED, TAKEN, Case, form, part, plain

PLACES = {
    "parent": "../../etc/passwd",
    "parent-deep": "../" * 40 + "etc/passwd",
    "parent-windows": "..\\..\\windows\\win.ini",
    "absolute": "/etc/passwd",
    "drive": "C:\\windows\\win.ini",
    "share": "\\\\127.0.0.1\\share\\x",
    "nul": "start.png\0.mp4",
    "encoded": "..%2f..%2fetc%2fpasswd",
    "encoded-twice": "%252e%252e%252fetc",
    "overlong": "..\u2215..\u2215etc",
    "full-width": "\uff0e\uff0e\uff0fetc",
    "right-to-left": "gnp.\u202egpj.exe",
    "zero-width": "a\u200b/../b",
    "newline": "a\nSet-Cookie: x=1",
    "device": "CON",
    "device-with-suffix": "aux.png",
    "standard-input": "/dev/stdin",
    "own-memory": "/proc/self/environ",
    "dots": "...",
    "dot": ".",
    "empty": "",
    "space": " ",
    "tilde": "~root/.ssh/id_rsa",
    "variable": "$HOME/${PATH}",
    "command": "$(touch /x);`touch /x`|touch /x",
    "option": "--help",
    "long": "a" * 5000,
    "long-path": "a/" * 3000,
    "quote": "';DROP TABLE jobs;--",
    "union": "' UNION SELECT client FROM jobs--",
    "format": "%s%s%n{0}{0.__class__}",
    "template": "{{7*7}}${7*7}<%= 7*7 %>",
    "regex": "(a+)+$" * 20,
    "markup": "<img src=x onerror=alert(1)>",
    "lookup": "${jndi:ldap://127.0.0.1/a}",
    "clip-time": "start.png@1s",
    "stream": "x.png:$DATA",
    "escape": "\x1b[2J\x1b]0;x\x07",
}
URLS = (
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:22/",
    "http://[::1]:80/",
    "http://0x7f000001/",
    "http://2130706433/",
    "https://example.com/a.png",
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "gopher://127.0.0.1:25/x",
    "//127.0.0.1/x",
    "dict://127.0.0.1:11211/stats",
    "data:text/html;base64,PGI+",
    "data:image/png,plain",
    "DATA:IMAGE/PNG;BASE64,AAAA",
    "data:image/png;base64,AAAA" + "\n" * 9,
    "blob:null/1",
    "javascript:alert(1)",
    "concat:/etc/passwd|/etc/group",
)
FIELDS = (
    "prompt",
    "model",
    "seconds",
    "frames",
    "size",
    "fps",
    "seed",
    "negative_prompt",
    "method",
    "schedule",
    "steps",
    "guidance",
    "embedded_guidance",
    "solver",
    "step_cache",
    "loop",
    "untrained",
    "copy_clips",
    "keyframes",
    "loras",
)
WRONG: Mapping[str, str] = {
    "list": "[[]]",
    "object": '{"a":{"b":[]}}',
    "not-a-number": "NaN",
    "huge": "1" * 400,
    "lone-surrogate": '"\\ud83d"',
}
"""JSON of no field's type or range."""


def of_names() -> Iterator[Case]:
    for name, text in PLACES.items():
        yield form(f"file-name-{name}", PROMPT, part("image", PICTURE, text), answers=EITHER)
        yield form(f"file-field-{name}", PROMPT, part(text, PICTURE, "a.png"))
        yield plain(f"model-{name}", {"prompt": "x", "model": text})
        yield Case(
            name=f"id-{name}",
            method="GET",
            path=f"/v1/videos/{quote(text)}",
            answers=REFUSED if text.strip(".") else (*EITHER, 307),
        )
        yield plain(f"lora-{name}", {"prompt": "x", "loras": [{"name": text}]})
        yield plain(f"keyframe-{name}", {"prompt": "x", "keyframes": [{"at": 1, "picture": text}]})
    for name in ("parent", "nul", "quote", "format", "regex", "command", "long"):
        for place in ("method", "schedule", "size", "step_cache"):
            yield plain(f"{place}-{name}", {"prompt": "x", place: PLACES[name]})
        for verb in ("remix", "redo", "extend", "cancel", "pause", "resume", "move"):
            body = {"remix": {"prompt": "x"}, "redo": {"section": 1}, "extend": {"prompt": "x"}}.get(verb, {})
            yield plain(f"{verb}-of-{name}", body, path=f"/v1/videos/{quote(PLACES[name])}/{verb}")
        yield Case(name=f"delete-{name}", method="DELETE", path=f"/v1/videos/{quote(PLACES[name])}")
        yield Case(name=f"content-of-{name}", method="GET", path=f"/v1/videos/{quote(PLACES[name])}/content")
        yield plain(f"prompt-{name}", {"prompt": PLACES[name]}, answers=REFUSED if name == "nul" else TAKEN)
        yield plain(f"move-before-{name}", {"before": PLACES[name]}, path="/v1/videos/{id}/move")
        yield Case(
            name=f"variant-{name}",
            method="GET",
            path="/v1/videos/{id}/content",
            query=b"variant=" + quote(PLACES[name]).encode(),
        )
        yield Case(name=f"after-{name}", method="GET", query=b"after=" + quote(PLACES[name]).encode())
    for number, url in enumerate(URLS):
        for place in ("image", "input_reference", "end_image"):
            yield plain(f"url-{number}-as-{place}", {"prompt": "x", place: url})
        yield plain(f"url-{number}-in-an-object", {"prompt": "x", "input_reference": {"image_url": url}})
        yield plain(f"url-{number}-as-a-model", {"prompt": "x", "model": url})
        yield form(f"url-{number}-in-a-form", PROMPT, part("input_reference", url.encode()))


def of_values() -> Iterator[Case]:
    for place in FIELDS:
        for name, text in WRONG.items():
            first = "" if place == "prompt" else '"prompt":"x",'
            yield plain(f"{place}-{name}", f'{{{first}"{place}":{text}}}'.encode())
    for name, body in {
        "nothing": b"",
        "null": b"null",
        "number": b"1e999",
        "true": b"true",
        "half": b'{"prompt": "x"',
        "more-behind": b'{"prompt":"x"}{}',
        "comment": b'{"prompt":"x"/**/}',
        "deep-lists": b"[" * 40_000 + b"]" * 40_000,
        "deep-objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        "deep-extra": b'{"prompt":"x","extra":' + b'{"extra":' * 400 + b"1" + b"}" * 401,
        "million-lists": b"[" + b"[]," * 1_000_000 + b"[]]",
        "million-digits": b'{"prompt":"x","seed":' + b"9" * 1_000_000 + b"}",
        "million-keys": b"{" + b",".join(b'"%d":0' % n for n in range(200_000)) + b"}",
        "key-of-a-megabyte": b'{"prompt":"x","' + b"k" * 1_000_000 + b'":1}',
        "key-of-surrogates": b'{"prompt":"x","\\udfff\\ud800":1}',
        "extra-of-surrogates": b'{"prompt":"x","extra":{"\\udfff":1}}',
        "extra-as-text": b'{"prompt":"x","extra":"{"}',
        "extra-as-list": b'{"prompt":"x","extra":[]}',
        "extra-of-pictures": b'{"prompt":"x","extra":{"image":"file:///etc/passwd"}}',
        "control-characters": b'{"prompt":"\x00\x01"}',
        "bytes": bytes(range(256)),
        "utf-16": '{"prompt": 7}'.encode("utf-16"),
        "prototype": b'{"prompt":"x","__proto__":{"a":1},"constructor":{}}',
        "class": b'{"prompt":"x","__class__":"os.system"}',
        "prompt-of-a-megabyte": b'{"prompt":"' + b"x" * 1_000_000 + b'"}',
        "late-keyframe": b'{"prompt":"x","keyframes":[{"at":1e308,"picture":"k"}]}',
        "hundred-keyframes": b'{"prompt":"x","keyframes":[' + b",".join([b'{"picture":"k"}'] * 100) + b"]}",
        "lora-of-infinite-weight": b'{"prompt":"x","loras":[{"name":"a","weight":Infinity}]}',
        "day-long": b'{"prompt":"x","seconds":86400}',
        "million-frames": b'{"prompt":"x","frames":10000000}',
        "endless": b'{"prompt":"x","seconds":Infinity}',
        "negative": b'{"prompt":"x","seconds":-1e-300}',
        "huge-untrained": b'{"prompt":"x","untrained":true,"size":"999999x999999"}',
        "kernel-of-a-million": b'{"prompt":"x","untrained":true,"method":"f9k999999_x_g9_f1k1"}',
        "bad-times": b'{"prompt":"[0s: a] [nan s: b] [1e999s: c]"}',
    }.items():
        yield plain(f"json-{name}", body)
    yield plain("json-twice-the-same", b'{"prompt":7,"prompt":"x"}', answers=TAKEN)
    yield plain("json-brackets-in-a-prompt", {"prompt": "[" * 9000}, answers=EITHER)
    yield form(
        "late-keyframe-with-its-picture",
        PROMPT,
        part("keyframes", b'[{"at":1e308,"picture":"k"}]'),
        part("k", PICTURE, "k"),
    )
    for verb, bodies in {
        "remix": (b"{}", b"[]", b'{"prompt":"\\u0000"}', b'{"prompt":7}', b"[" * 30_000),
        "redo": (
            b"{}",
            b'{"section":0}',
            b'{"section":' + b"9" * 4000 + b"}",
            b'{"section":1e400}',
            b'{"section":1,"seed":-1}',
            b'{"section":1,"prompt":"[0s: a] [1s: b]"}',
        ),
        "extend": (
            b"{}",
            b'{"prompt":"x","seconds":0}',
            b'{"prompt":"x","seconds":NaN}',
            b'{"prompt":"x","seconds":599}',
            b'{"prompt":"x","seconds":1e308}',
        ),
        "move": (b"[]", b'{"before":7}', b'{"before":"' + b"v" * 300 + b'"}', b'{"after":null}'),
    }.items():
        for number, body in enumerate(bodies):
            yield plain(f"{verb}-body-{number}", body, path=f"/v1/videos/{{id}}/{verb}")
    yield plain("remix-of-2-mb", b'{"prompt":"' + b"x" * 2_000_000 + b'"}', path="/v1/videos/{id}/remix")
    for name, query in {
        "limit-0": b"limit=0",
        "limit-huge": b"limit=" + b"9" * 5000,
        "limit-negative": b"limit=-1",
        "limit-not-a-number": b"limit=nan",
        "order": b"order=asc;drop",
        "after-long": b"after=" + b"v" * 70,
        "after-nul": b"after=%00",
        "after-no-utf-8": b"after=%ff%fe",
    }.items():
        yield Case(name=f"query-{name}", method="GET", query=query)
    for section in ("-1", "1e9", "9" * 4000, "../0", "%2e%2e", "0x0", "99999999999", "%00"):
        yield Case(name=f"preview-{section[:12]}", method="GET", path=f"/v1/videos/{{id}}/previews/{section}")
