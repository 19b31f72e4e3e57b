"""`python -m hanmaru_cli`: how one part starts another with the interpreter it runs in."""

from hanmaru_cli.main import main

main()
