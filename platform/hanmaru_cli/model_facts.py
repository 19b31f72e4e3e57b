"""`hanmaru model-facts` on the command line: which source, and where the line goes. The rest is `inspect_model`'s."""

from __future__ import annotations

from pathlib import Path

from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.inspect_model import Report, from_folder, from_hub, read_token


def run(
    checkpoint: Path | None,
    repo: str | None,
    out: Path | None,
    *,
    revision: str,
    endpoint: str,
    token_file: Path | None,
) -> int:
    """Write the report; the exit code is 0 with facts, 2 where trying again does not help, else 1."""
    if (checkpoint is None) == (repo is None):
        raise HanmaruError(ErrorCode.CONFIGURATION, "give either --checkpoint or --repo")
    report = _look(checkpoint, repo, revision, endpoint, token_file)
    if out is None:
        print(report.line())
    else:
        try:
            out.write_text(report.line() + "\n", encoding="ascii")
        except OSError as error:
            raise HanmaruError(ErrorCode.CONFIGURATION, f"{out} cannot be written: {error.strerror}") from error
    return 0 if report.facts is not None else 2 if report.is_permanent else 1


def _look(checkpoint: Path | None, repo: str | None, revision: str, endpoint: str, token_file: Path | None) -> Report:
    if checkpoint is not None:
        return from_folder(checkpoint)
    assert repo is not None
    try:
        token = read_token(token_file) if token_file is not None else None
    except HanmaruError as error:
        return Report(None, "", error.message, is_permanent=True)
    return from_hub(endpoint, repo, revision, token)
