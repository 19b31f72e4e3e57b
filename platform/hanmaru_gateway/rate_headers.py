"""What a caller is told of its limits: OpenAI's `x-ratelimit-*`, the same over REST and gRPC. Pure."""

from __future__ import annotations

import math

from hanmaru_gateway.request import RateState


def rate_headers(rate: RateState) -> list[tuple[str, str]]:
    """Names and values; a limit that does not exist has none."""
    headers: list[tuple[str, str]] = []
    for what, limit, remaining, reset_s in (
        ("requests", rate.limit_requests, rate.remaining_requests, rate.reset_requests_s),
        ("tokens", rate.limit_tokens, rate.remaining_tokens, rate.reset_tokens_s),
    ):
        if limit is not None:
            headers.append((f"x-ratelimit-limit-{what}", str(limit)))
        if remaining is not None:
            headers.append((f"x-ratelimit-remaining-{what}", str(max(0, remaining))))
        if reset_s is not None:
            headers.append((f"x-ratelimit-reset-{what}", f"{math.ceil(reset_s * 1000)}ms"))
    return headers
