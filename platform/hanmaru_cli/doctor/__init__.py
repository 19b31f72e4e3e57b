"""`hanmaru doctor`: what keeps a cluster, or this machine, from serving, and what to do about it.

`fetch` and `machine_facts` look (reads only, with the caller's own rights), the `…_checks` modules judge what was
seen and are pure, `report` prints. `program` (a cluster) and `machine` put them in order; `main` calls those.
"""
