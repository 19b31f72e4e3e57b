"""The shared cache: a tier of the prefix cache on Redis, below SGLang's host memory. Off unless a spec asks for it.

SGLang makes `storage.TierStorage` in each rank's process. What is written there and under which name is decided by
`naming` and `sealing`, which are pure; `store` is the only module that speaks to Redis, by way of `hanmaru_redis`;
`domains` carries the isolation domain of a request to where its pages are read and written. docs/shared-cache.md says
what the tier is for.
"""
