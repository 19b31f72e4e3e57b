"""What Hanmaru adds to SGLang: a CPU platform, and hybrid sliding-window KV for the K-EXAONE family.

The engine finds it through the entry points `sglang.srt.platforms` and `sglang.srt.plugins`; the supervisor
only names it in flags and environment. Importing this package imports no SGLang, so a machine without the
engine can hold it. `docs/sglang-plugin.md` has one entry for every upstream name that is touched.
"""

PLATFORM_NAME = "hanmaru_cpu"
"""Entry point of the CPU platform, and the value of `SGLANG_PLATFORM` that selects it."""

ATTENTION_BACKEND = "hanmaru_native"
"""The CPU platform's attention backend, as `--attention-backend` and `/server_info` spell it."""
