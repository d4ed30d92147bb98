"""Forms, headers, methods, ranges, paths and tokens that are none."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import hostile_pictures as pictures
from hostile_case import EITHER, END, FORM, JSON, PICTURE, PROMPT, TAKEN, Case, part, plain


def of_forms() -> Iterator[Case]:
    good = PROMPT + END
    for name, kind, body in (
        ("no-boundary", b"multipart/form-data", good),
        ("empty-boundary", b"multipart/form-data; boundary=", good),
        ("other-boundary", b"multipart/form-data; boundary=other", good),
        ("long-boundary", b"multipart/form-data; boundary=" + b"b" * 5000, good),
        ("nul-boundary", b"multipart/form-data; boundary=\0", good),
        ("quoted-boundary", b'multipart/form-data; boundary="x-boundary', b""),
        ("no-end", FORM, PROMPT),
        ("cut-in-a-header", FORM, PROMPT[:40]),
        ("cut-in-a-boundary", FORM, PROMPT + END[:5]),
        ("nothing", FORM, b""),
        ("end-alone", FORM, END),
        ("noise", FORM, bytes(range(256)) * 40),
        ("line-feeds-alone", FORM, good.replace(b"\r\n", b"\n")),
        ("mixed", b"multipart/mixed; boundary=x-boundary", good),
        ("related", b"multipart/related; boundary=x-boundary", good),
        ("no-disposition", FORM, b"--x-boundary\r\nX: y\r\n\r\nx\r\n" + END),
        ("no-headers", FORM, b"--x-boundary\r\n\r\nx\r\n" + END),
        ("header-of-a-megabyte", FORM, part("prompt", b"x", more=b"X: " + b"y" * 1_000_000 + b"\r\n") + END),
        ("thousand-headers", FORM, part("prompt", b"x", more=b"X: y\r\n" * 5000) + END),
        ("thousand-fields", FORM, part("a", b"b") * 3000 + END),
        ("thousand-files", FORM, PROMPT + part("image", b"x", "a") * 3000 + END),
        ("file-twice", FORM, PROMPT + part("image", PICTURE, "a") * 2 + END),
        (
            "both-start-pictures",
            FORM,
            PROMPT + part("image", PICTURE, "a") + part("input_reference", PICTURE, "a") + END,
        ),
        ("field-of-a-megabyte", FORM, part("prompt", b"x" * 1_000_000) + END),
        ("prompt-as-a-file", FORM, part("prompt", b"x", "prompt.txt") + END),
        (
            "base64-part",
            FORM,
            PROMPT
            + part("image", base64.b64encode(PICTURE), "a", b"Content-Transfer-Encoding: base64\r\n")
            + END,
        ),
        ("length-of-a-part", FORM, PROMPT + part("image", b"x", "a", b"Content-Length: 99999999\r\n") + END),
        (
            "extended-name",
            FORM,
            b"--x-boundary\r\nContent-Disposition: form-data; name*=bogus'x'%ff%00\r\n\r\nx\r\n" + END,
        ),
        ("keyframes-no-json", FORM, PROMPT + part("keyframes", b"[") + END),
        ("keyframes-deep", FORM, PROMPT + part("keyframes", b"[" * 30_000) + END),
        ("loras-an-object", FORM, PROMPT + part("loras", b"{}") + END),
        ("extra-of-surrogates", FORM, PROMPT + part("extra", b'{"\\ud800":1}') + END),
        ("url-encoded-of-10000-fields", b"application/x-www-form-urlencoded", b"a=b&" * 10_000),
        ("url-encoded-noise", b"application/x-www-form-urlencoded", b"prompt=%zz%00%ff&=&&==&" + b"%" * 999),
        ("text", b"text/plain", b"x"),
        ("xml", b"application/xml", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
        ("pickle", b"application/x-python-pickle", pictures.OTHERS["pickle"]),
        ("no-kind", b"", b"{}"),
        ("kind-of-10000", b"a/" + b"b" * 10_000, b"{}"),
        ("kind-no-ascii", b"\xff\xfe/json", b"{}"),
    ):
        yield Case(name=f"form-{name}", kind=kind, body=body)
    for charset in (
        "undefined",
        "idna",
        "punycode",
        "unicode_escape",
        "utf-7",
        "zlib",
        "hex",
        "utf-16",
        "../x",
        "\\ud800",
        "rot13",
    ):
        told = FORM + b"; charset=" + charset.encode()
        yield Case(
            name=f"form-charset-{charset}",
            kind=told,
            body=part("prompt", b"\xff\\ud800" + b"x" * 70) + END,
            answers=EITHER,
        )


def of_headers() -> Iterator[Case]:
    good = b'{"prompt":"x"}'
    for number, host in enumerate(
        (
            b"evil.example",
            b"",
            b"testserver.evil.example",
            b"evil@testserver.example",
            b"[::1",
            b"[testserver]x",
            b"testserver@evil",
            b"\xff\xfe",
            b"169.254.169.254",
            b"a" * 9000,
            b"test server",
            b"..",
        )
    ):
        yield plain(f"host-{number}", good, host=host)
    yield plain("host-missing", good, host=None)
    for number, origin in enumerate(
        (
            b"https://evil.example",
            b"null",
            b"http://testserver.evil.example",
            b"http://[::1",
            b"http://testserver:99",
            b"file://",
            b"\xff\xfe",
            b"http://testserver@evil.example",
            b"x" * 9000,
            b"http://test\xbdserver",
            b"javascript:alert(1)",
            b"http:///testserver",
        )
    ):
        yield plain(f"origin-{number}", good, headers=((b"origin", origin),))
    for number, length in enumerate(
        (b"-1", b"+5", b"0x10", b"\xb2", b"1e3", b"9" * 30, b"9" * 5000, b"5, 5", b"", b"NaN")
    ):
        yield plain(f"content-length-{number}", good, headers=((b"content-length", length),))
    for number, more in enumerate(
        (
            ((b"x-http-method-override", b"DELETE"),),
            ((b"x-method-override", b"DELETE"), (b"x-http-method", b"DELETE")),
            ((b"x-original-url", b"/v1/videos"), (b"x-rewrite-url", b"/v1/videos")),
            ((b"x-forwarded-host", b"evil.example"), (b"x-forwarded-for", b"127.0.0.1' OR 1=1")),
            ((b"forwarded", b"for=127.0.0.1;host=evil"), (b"x-real-ip", b"::1")),
            ((b"x-forwarded-prefix", b"/../.."), (b"x-script-name", b"/etc")),
            tuple((b"x-%d" % n, b"y" * 100) for n in range(2000)),
            ((b"accept", b"*/*," * 50_000),),
            ((b"accept-encoding", b"gzip;q=nan, *;q=-1"), (b"te", b"trailers, chunked")),
            ((b"cookie", b"framepack_session=" + b"x" * 60_000),),
            ((b"cookie", b"\xff=\xfe; =; ;;; framepack_session"),),
            ((b"authorization", b"Bearer"),),
            ((b"authorization", b"Basic " + b"=" * 9000),),
            ((b"if-none-match", b'"' * 5000), (b"if-modified-since", b"never")),
            ((b"last-event-id", b"-1e999"),),
            ((b"expect", b"100-continue"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMAAABk")),
        )
    ):
        yield Case(name=f"header-{number}", method="GET", path="/v1/videos/{id}", headers=more, answers=TAKEN)
    for method in (
        "TRACE",
        "CONNECT",
        "PROPFIND",
        "PUT",
        "PATCH",
        "OPTIONS",
        "HEAD",
        "get",
        "\0",
        "A" * 5000,
        "DELETE /v1/videos HTTP/1.1",
    ):
        yield Case(name=f"method-{method[:20]!r}", method=method)
    for number, asked in enumerate(
        (
            "bytes=0-0",
            "bytes=5-2",
            "bytes=-0",
            "bytes=-99999999999",
            "bytes=99999999999-",
            "bytes=-",
            "bytes=0-,0-,0-",
            "bytes=" + "0-," * 5000,
            "bytes=" + ",".join(f"{n}-{n}" for n in range(3000)),
            "bytes=a-b",
            "bytes=--5",
            "bytes=+1-2",
            "bytes=0x0-0x9",
            "items=0-5",
            "=",
            "bytes",
            "bytes=" + "9" * 5000 + "-",
            "bytes=1-" + "9" * 5000,
            "bytes=\u0661-\u0662",
            "bytes=0-5\0",
            "BYTES=0-3",
            "bytes = 0 - 3",
        )
    ):
        for variant in ("video", "spritesheet"):
            yield Case(
                name=f"range-{number}-of-{variant}",
                method="GET",
                path="/v1/videos/{id}/content",
                query=f"variant={variant}".encode(),
                headers=((b"range", asked.encode()),),
                answers=(200, 206, 416),
            )
    for number, path in enumerate(
        (
            "//etc/passwd",
            "/..%2f..%2fetc/passwd",
            "/v1/../../etc/passwd",
            "/static/../../etc/passwd",
            "/v1/videos/%2e%2e/%2e%2e/etc",
            "/v1/videos/{id}/content/../../x",
            "/v1/videos/{id}/previews/../video.mp4",
            "/v1/videos/{id}/run/request.json",
            "/v1/videos/{id}//content",
            "/.git/config",
            "/jobs.sqlite",
            "/data/jobs",
            "/docs/../jobs.sqlite",
            "/v1/videos%00",
            "/%ff%fe",
            "/" + "a" * 20_000,
            "/v1/videos/{id};/content",
            "/v1/videos/{id}%20",
            "/v1/VIDEOS/{id}",
            "/openapi.json/..",
            "/key",
        )
    ):
        yield Case(name=f"path-{number}", method="GET", path=path)


def of_tokens(token: str, cookie: str) -> Iterator[Case]:
    """For a service with tokens: none of these lets anybody in."""
    name, signed = cookie.split(":", 1)
    written, signature = signed.split(":")
    half = len(token) // 2
    for number, told in enumerate(
        (
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {token[:-1]}",
            f"Bearer {token}x",
            f"Bearer {token} {token}",
            f"Bearer {token.upper()}",
            f"Bearer {token[half:]}",
            f"Basic {token}",
            f"Token {token}",
            token,
            f"Bearer\t{token}",
            f"Bearer {token}\0",
            "Bearer null",
            "Bearer undefined",
            "Bearer " + "a" * 50_000,
            "Bearer \xff\xfe",
            "Bearer ' OR '1'='1",
            "Bearer *",
            "Bearer {}",
            "Bearer eyJhbGciOiJub25lIn0.e30.",
            f"Digest username={token}",
            f"Bearer {signed}",
            f"Bearer {cookie}",
        )
    ):
        yield Case(
            name=f"token-{number}",
            method="GET",
            headers=((b"authorization", told.encode("latin-1")),),
            answers=(401,),
        )
    for number, told in enumerate(
        (
            f"{name}:",
            signed,
            f"{name}:{signed[:-1]}",
            f"{name}:{signed}0",
            f"eve:{signed}",
            f"{name}:{'0' * len(signed)}",
            f"{name}:{signed.upper()}x",
            f":{signed}",
            "::",
            f'"{name}',
            token,
            f"{name}:{token}",
            f"{name}%3A{signed}",
            f"{name}\\072{signed}0",
            "x" * 60_000,
            f"bob:{signed}",
            f"{name} :{signed}",
            f"{name}:{int(written) + 1}:{signature}",
            f"{name}:0{written}:{signature}",
            f"{name}:{'9' * 400}:{signature}",
            f"{name}:-1:{signature}",
            f"{name}:{signature}",
        )
    ):
        yield Case(
            name=f"cookie-{number}",
            method="GET",
            headers=((b"cookie", b"framepack_session=" + told.encode("latin-1")),),
            answers=(401,),
        )
    sent = (b"authorization", b"Bearer " + token.encode())
    wrong = (b"authorization", b"Bearer " + token[:-1].encode())
    yield Case(name="token-second-of-two", method="GET", headers=(wrong, sent), answers=(401,))
    yield Case(name="token-in-the-query", method="GET", query=b"token=" + token.encode(), answers=(401,))
    yield Case(
        name="token-as-another-header",
        method="GET",
        headers=((b"x-api-key", token.encode()),),
        answers=(401,),
    )
    for path in (
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/v1/queue",
        "//health",
        "/health/../v1/videos",
        "/nothing",
    ):
        yield Case(name=f"closed-{path}", method="GET", path=path, answers=(401,))
    yield Case(name="large-body-without-a-token", kind=JSON, body=b" " * 3_000_000, answers=(401,))
