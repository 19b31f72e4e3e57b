// What holds a pod's network namespace open while its containers come and go.
module hanmaru/tests/cluster/programs/pause

go 1.26.0
